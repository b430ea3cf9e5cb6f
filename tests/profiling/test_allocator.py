"""Freed memory is kept while something is timed."""

import platform
import resource

import pytest
import torch

from diminuendo.profiling.allocator import freed_memory_kept


def page_faults_of_a_large_tensor() -> int:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(20_000_000)  # 80 MB, some 20,000 pages
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can be told")
def test_the_memory_of_a_tensor_is_new_only_the_first_time() -> None:
    with freed_memory_kept():
        page_faults_of_a_large_tensor()
        assert [page_faults_of_a_large_tensor() < 200 for _ in range(3)] == [True] * 3


def test_contexts_in_each_other_and_errors_break_nothing() -> None:
    with pytest.raises(ZeroDivisionError), freed_memory_kept(), freed_memory_kept():
        raise ZeroDivisionError
    assert torch.ones(20_000_000).sum() == 20_000_000
