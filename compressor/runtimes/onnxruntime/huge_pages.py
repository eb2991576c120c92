"""Weights side by side in huge pages: reading them all for each token then takes fewer translations of addresses.

On Linux with glibc 2.35 or newer.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_HUGE = Path("/sys/kernel/mm/transparent_hugepage/hpage_pmd_size")
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # malloc.h
_NEVER = -1
_AFTERWARDS = 1 << 20
"""Bytes from which arrays are mapped by themselves again: they take memory only as they are used."""
_BLOCK = 1 << 30
_MADV_HUGEPAGE = 14  # mman.h


@contextmanager
def in_huge_pages(size_bytes: int) -> Iterator[bool]:
    """What is allocated inside lies in one heap of huge pages, so much of it at most; False where that is not to be had.

    glibc maps each array of more than 128 kB by itself, so weights of some hundred kilobytes never fill a huge page (2 MB). Here
    the heap grows at once, the kernel is asked for huge pages before any of it is touched, and it is free again: it takes memory
    only as it is used. At the end what was not used goes back.
    """
    libc = _glibc()
    if libc is None:
        yield False
        return
    libc.mallopt(_TRIM_THRESHOLD, _NEVER)
    try:
        yield _asked(libc, size_bytes)
    finally:
        libc.mallopt(_MMAP_THRESHOLD, _AFTERWARDS)
        libc.mallopt(_TRIM_THRESHOLD, _AFTERWARDS)
        libc.malloc_trim(0)


def _glibc() -> Any:
    """The C library, with its threshold raised; None where it is another, or an older one that has no thresholds so high."""
    if not _HUGE.is_file() or not hasattr(libc := ctypes.CDLL(None), "mallopt"):
        return None
    libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    libc.free.argtypes, libc.malloc_trim.argtypes = [ctypes.c_void_p], [ctypes.c_size_t]
    libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    return libc if libc.mallopt(_MMAP_THRESHOLD, _BLOCK) else None


def _asked(libc: Any, size_bytes: int) -> bool:
    page = int(_HUGE.read_text(encoding="ascii"))
    size = _BLOCK - page
    blocks = [libc.malloc(size) for _ in range(-(-size_bytes // size))]
    granted = all(blocks)
    for block in filter(None, blocks):
        start, end = -(-block // page) * page, (block + size) // page * page
        granted &= libc.madvise(start, end - start, _MADV_HUGEPAGE) == 0
    for block in reversed(blocks):
        libc.free(block)
    return granted
