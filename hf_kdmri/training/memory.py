"""Memory on a CPU: what a training step frees stays with the process, in huge pages, for the next step."""

from __future__ import annotations

import ctypes
import mmap
import os
import platform
import sys
from typing import Any

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4  # malloc.h
_MADV_HUGEPAGE = 14
_HUGE_PAGE = 2 << 20
_GROWTH = 256 << 20  # of the heap, beyond what is reserved
_DECIDED_BY = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_MMAP_MAX_", "MALLOC_TRIM_THRESHOLD_", "MALLOC_TOP_PAD_")


def keep_memory(share: float = 0.5) -> str:
    """Have glibc keep freed memory for this process, and ask Linux to back it with huge pages.

    By default glibc maps every large activation anew and gives it back when it is freed, up to 32 MB; so each step of a
    training on the CPU meets its memory as hundreds of thousands of 4 KiB page faults, which the kernel has to zero.
    Here nothing is mapped apart (`M_MMAP_MAX` 0), the heap is never trimmed, and a stretch of it is reserved and marked
    with `MADV_HUGEPAGE`. Only addresses are reserved: memory is used as it is written. No number changes.

    It acts at any time in the life of a process, on what is allocated afterwards, and holds for its forked workers.
    The alternatives, `GLIBC_TUNABLES` in the environment (a program would have to start itself again before torch is
    imported) and torch's `THP_MEM_ALLOC_ENABLE`, were not faster: benchmarks/README.md, "Memory on a CPU".

    Args:
        share: of the machine's memory, how much heap to reserve; beyond it the heap grows in small pages.

    Returns:
        What was done, in words: "kept, in huge pages", "kept", or "left alone: " and the reason, elsewhere than on
        Linux with glibc and where the environment names another allocator or has values of its own for glibc's.
    """
    if reason := _reason_to_leave_alone():
        return f"left alone: {reason}"
    libc = ctypes.CDLL(None)
    if not (libc.mallopt(_MMAP_MAX, 0) and libc.mallopt(_TRIM_THRESHOLD, -1) and libc.mallopt(_TOP_PAD, _GROWTH)):
        return "left alone: mallopt refused"
    pages, page = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
    return "kept, in huge pages" if _reserve_heap(libc, int(pages * page * share)) else "kept"


def _reason_to_leave_alone() -> str | None:
    if sys.platform != "linux" or platform.libc_ver()[0] != "glibc":
        return "this is no Linux with glibc"
    if "malloc" in os.environ.get("LD_PRELOAD", ""):
        return f"LD_PRELOAD is {os.environ['LD_PRELOAD']}"
    for name in _DECIDED_BY:
        if name in os.environ:
            return f"{name} is set"
    if "glibc.malloc." in os.environ.get("GLIBC_TUNABLES", ""):
        return "GLIBC_TUNABLES is set"
    return None


def _reserve_heap(libc: Any, size: int) -> bool:
    """Grow the heap once by `size` bytes, mark them, and free them again; whether all of that could be done."""
    try:  # a limit of addresses or commitments; a malloc that fails would move this thread to another, small heap
        mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS).close()
    except OSError:
        return False
    libc.malloc.restype = libc.sbrk.restype = ctypes.c_void_p
    libc.malloc.argtypes, libc.free.argtypes, libc.sbrk.argtypes = [ctypes.c_size_t], [ctypes.c_void_p], [ctypes.c_long]
    libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    start = libc.malloc(size)
    if start is None:
        return False
    first = -(-start // _HUGE_PAGE) * _HUGE_PAGE
    last = (start + size) // _HUGE_PAGE * _HUGE_PAGE
    # Memory from elsewhere than the heap's end would go back to the system when it is freed.
    in_heap = last <= (libc.sbrk(0) or 0) and start < last
    marked = in_heap and libc.madvise(first, last - first, _MADV_HUGEPAGE) == 0
    libc.free(start)
    return bool(marked)
