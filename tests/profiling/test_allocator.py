"""Freed memory is kept while something is timed."""

import platform
import subprocess
import sys

import pytest
import torch

from diminuendo.profiling.allocator import freed_memory_kept

# In a process of its own: what earlier tests left in the heap would decide where tensors lie. 20 tensors first: glibc
# puts a leftover beside an aligned block aside seven times before it joins the two to be used again.
PAGE_FAULTS = """
import resource, torch
from diminuendo.profiling.allocator import freed_memory_kept

def page_faults_of_a_large_tensor():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(20_000_000)  # 80 MB, some 20,000 pages
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def settled():
    return [page_faults_of_a_large_tensor() for _ in range(25)][20:]

print(*settled())
with freed_memory_kept():
    print(*settled())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can be told")
def test_the_memory_of_a_tensor_is_new_only_at_first() -> None:
    printed = subprocess.run([sys.executable, "-c", PAGE_FAULTS], capture_output=True, text=True, check=True).stdout
    before, kept = ([int(n) for n in line.split()] for line in printed.splitlines())
    assert min(before) > 10_000, printed
    assert max(kept) < 200, printed


def test_contexts_in_each_other_and_errors_break_nothing() -> None:
    with pytest.raises(ZeroDivisionError), freed_memory_kept(), freed_memory_kept():
        raise ZeroDivisionError
    assert torch.ones(20_000_000).sum() == 20_000_000
