"""Weights side by side in huge pages, on Linux with glibc: what every token reads then takes fewer translations of addresses."""

from __future__ import annotations

import ctypes
from pathlib import Path

_HUGE = Path("/sys/kernel/mm/transparent_hugepage/hpage_pmd_size")
_MMAP_THRESHOLD, _TRIM_THRESHOLD = -3, -1  # malloc.h
_NEVER = -1
_BLOCK = 1 << 30
_MADV_HUGEPAGE = 14  # mman.h


def reserve(size_bytes: int) -> bool:
    """Have so much of what this process allocates next lie in one heap of huge pages; False where that is not to be had.

    glibc maps each array of more than 128 kB by itself, so weights of some hundred kilobytes never fill a huge page (2 MB). Here
    the heap grows at once, the kernel is asked for huge pages before any of it is touched, and it is free again: it takes memory
    only as it is used. From then on the heap does not shrink, so this is for a process that opens one model and keeps it.
    """
    if not _HUGE.is_file() or not hasattr(libc := ctypes.CDLL(None), "mallopt"):
        return False
    libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    libc.free.argtypes, libc.madvise.argtypes = [ctypes.c_void_p], [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    libc.mallopt(_MMAP_THRESHOLD, _BLOCK)
    libc.mallopt(_TRIM_THRESHOLD, _NEVER)
    page = int(_HUGE.read_text(encoding="ascii"))
    sizes = [min(left, _BLOCK - page) for left in range(size_bytes, 0, page - _BLOCK)]
    blocks = [libc.malloc(size) for size in sizes]
    granted = all(blocks)
    for block, size in zip(blocks, sizes, strict=True):
        if block:
            start, end = -(-block // page) * page, (block + size) // page * page
            granted &= end > start and libc.madvise(start, end - start, _MADV_HUGEPAGE) == 0
    for block in reversed(blocks):
        libc.free(block)
    return granted
