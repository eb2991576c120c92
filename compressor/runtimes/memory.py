"""Whether what is about to be held fits, said before it is tried."""

from __future__ import annotations

import psutil

from compressor.errors import UsageError


def check_room(needed_bytes: int, samples: int, tokens: int) -> None:
    """Whether keys and values of so many texts of so many tokens fit into what is free.

    Raises:
        UsageError: they do not.
    """
    free = psutil.virtual_memory().available
    if needed_bytes > free:
        texts = "one text" if samples == 1 else f"{samples} texts"
        raise UsageError(
            f"the keys and values of {texts} of {tokens:,} tokens take {needed_bytes / 1e9:.1f} GB, and {free / 1e9:.1f} GB of "
            "memory are free",
            remedy="ask for fewer tokens (--max-tokens), or fewer texts at a time",
        )
