"""What the C library does with memory that was freed: part of every latency on a CPU."""

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager

# Of glibc's mallopt. By default blocks above some size, at most 32 MB, come from the kernel and go back to it.
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4
_KEPT = {_MMAP_MAX: 0, _TRIM_THRESHOLD: 2**31 - 1}
_AS_BEFORE = {_MMAP_MAX: 65536, _MMAP_THRESHOLD: 32 * 2**20, _TRIM_THRESHOLD: 64 * 2**20}


@contextmanager
def freed_memory_kept() -> Iterator[None]:
    """Lets the process keep what is freed in the block, where glibc is the C library; elsewhere nothing is done.

    An activation of a front end is tens of MB. By default its memory is new each time, and the kernel clears it page by
    page, unless the process has freed more at once before: so a model's latency depends on what ran before it, by half.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is None:
        yield
        return
    try:
        for option, value in _KEPT.items():
            mallopt(option, value)
        yield
    finally:
        for option, value in _AS_BEFORE.items():
            mallopt(option, value)
