"""Memory of this process: checks against what is free, and allocation in huge pages."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from compressor.errors import UsageError

_HUGE_PAGE_SIZE = Path("/sys/kernel/mm/transparent_hugepage/hpage_pmd_size")
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h
_MADV_HUGEPAGE = 14  # mman.h
_NEVER_TRIM = -1
_RESTORED_THRESHOLD_BYTES = 1 << 20
"""``M_MMAP_THRESHOLD`` and ``M_TRIM_THRESHOLD`` afterwards: larger arrays are mapped on their own
again, and take memory only as they are used."""
_MAX_BLOCK_BYTES = 1 << 30
_REUSED_HEAP_BYTES = 1 << 30
"""Part of the heap in huge pages while memory is reused; it takes memory only as it is used."""
_REUSED_BLOCK_BYTES = 64 << 20
"""Largest block that is reused; larger ones are returned at once, so that they cannot fragment the
heap."""
_DYNAMIC_THRESHOLD_BYTES = 32 << 20
"""``M_MMAP_THRESHOLD`` that glibc itself arrives at when large blocks are freed."""


def check_kv_cache_fits(needed_bytes: int, batch_size: int, tokens: int) -> None:
    """Check that a key-value cache fits into the free memory.

    Args:
        needed_bytes: size of all keys and values.
        batch_size: number of sequences.
        tokens: capacity of each sequence.

    Raises:
        UsageError: it does not fit.
    """
    sequences = "1 sequence" if batch_size == 1 else f"{batch_size} sequences"
    _check_fits(
        needed_bytes,
        f"the key-value cache of {sequences} of {tokens:,} tokens",
        "generate fewer tokens (--max-tokens), or process fewer sequences at a time",
    )


def check_prompt_weights_fit(needed_bytes: int) -> None:
    """Check that the 8-bit weights for prompts fit into the free memory.

    Raises:
        UsageError: they do not fit.
    """
    _check_fits(needed_bytes, "the 8-bit weights for prompts", "leave --fast-prompts out")


def _check_fits(needed_bytes: int, contents: str, remedy: str) -> None:
    free_bytes = psutil.virtual_memory().available
    if needed_bytes > free_bytes:
        raise UsageError(
            f"not enough memory for {contents}: {needed_bytes / 1e9:.1f} GB needed, "
            f"{free_bytes / 1e9:.1f} GB free",
            remedy=remedy,
        )


@contextmanager
def huge_pages(size_bytes: int) -> Iterator[bool]:
    """Allocate in one heap of huge pages inside the ``with`` block.

    Decoding reads every weight for each token. Weights that lie side by side in huge pages need
    fewer address translations. glibc maps each array of more than 128 kB on its own, so weights of
    some hundred kilobytes never fill a huge page (2 MB). Here the heap grows at once, the kernel is
    asked for huge pages before any of it is touched, and the heap is freed again: it takes memory
    only as it is used. On exit the unused rest is returned to the system.

    Needs Linux with glibc 2.35 or newer.

    Args:
        size_bytes: upper limit of what is allocated inside.

    Yields:
        True if huge pages were granted; False where they are not available.
    """
    libc = _load_glibc()
    if libc is None:
        yield False
        return
    libc.mallopt(_M_TRIM_THRESHOLD, _NEVER_TRIM)
    try:
        yield _grow_heap(libc, size_bytes)
    finally:
        libc.mallopt(_M_MMAP_THRESHOLD, _RESTORED_THRESHOLD_BYTES)
        libc.mallopt(_M_TRIM_THRESHOLD, _RESTORED_THRESHOLD_BYTES)
        libc.malloc_trim(0)


@contextmanager
def reused_memory() -> Iterator[None]:
    """Keep freed memory for the next allocations inside the ``with`` block, in huge pages.

    A training step allocates and frees the same megabytes again and again. glibc returns them to
    the system in between, and the kernel fills each page with zeros before it is used again: 6 %
    of the time of a small model's step. On exit the unused memory is returned.

    Has no effect where ``huge_pages`` has none.
    """
    libc = _load_glibc()
    if libc is None:
        yield
        return
    libc.mallopt(_M_TRIM_THRESHOLD, _NEVER_TRIM)
    try:
        _grow_heap(libc, _REUSED_HEAP_BYTES)
        libc.mallopt(_M_MMAP_THRESHOLD, _REUSED_BLOCK_BYTES)
        yield
    finally:
        libc.mallopt(_M_MMAP_THRESHOLD, _DYNAMIC_THRESHOLD_BYTES)
        libc.mallopt(_M_TRIM_THRESHOLD, 2 * _DYNAMIC_THRESHOLD_BYTES)
        libc.malloc_trim(0)


def _load_glibc() -> Any:
    """Return the C library with its mmap threshold raised, or None if it does not support that."""
    if not _HUGE_PAGE_SIZE.is_file() or not hasattr(libc := ctypes.CDLL(None), "mallopt"):
        return None
    libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    libc.free.argtypes, libc.malloc_trim.argtypes = [ctypes.c_void_p], [ctypes.c_size_t]
    libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    return libc if libc.mallopt(_M_MMAP_THRESHOLD, _MAX_BLOCK_BYTES) else None


def _grow_heap(libc: Any, size_bytes: int) -> bool:
    """Grow the heap by ``size_bytes`` of huge pages; return True if all of them were granted."""
    page = int(_HUGE_PAGE_SIZE.read_text(encoding="ascii"))
    block_bytes = _MAX_BLOCK_BYTES - page
    blocks = [libc.malloc(block_bytes) for _ in range(-(-size_bytes // block_bytes))]
    granted = all(blocks)
    for block in filter(None, blocks):
        start, end = -(-block // page) * page, (block + block_bytes) // page * page
        granted &= libc.madvise(start, end - start, _MADV_HUGEPAGE) == 0
    for block in reversed(blocks):
        libc.free(block)
    return granted
