"""Whether what is about to be held fits, said before it is tried."""

from __future__ import annotations

import psutil

from compressor.errors import UsageError


def check_room(needed_bytes: int, samples: int, tokens: int) -> None:
    """Whether keys and values of so many texts of so many tokens fit into what is free.

    Raises:
        UsageError: they do not.
    """
    texts = "one text" if samples == 1 else f"{samples} texts"
    _check(
        needed_bytes,
        f"the keys and values of {texts} of {tokens:,} tokens take",
        "ask for fewer tokens (--max-tokens), or fewer texts at a time",
    )


def check_prompts(needed_bytes: int) -> None:
    """Whether the weights that prompts are read by fit into what is free.

    Raises:
        UsageError: they do not.
    """
    _check(
        needed_bytes,
        "the weights in 8 bits that prompts are read by take",
        "have prompts read as they are (without --fast-prompts)",
    )


def _check(needed_bytes: int, what: str, remedy: str) -> None:
    free = psutil.virtual_memory().available
    if needed_bytes > free:
        raise UsageError(
            f"{what} {needed_bytes / 1e9:.1f} GB, and {free / 1e9:.1f} GB of memory are free",
            remedy=remedy,
        )
