"""``python -m …tokenizer_trial``: encode texts with a foreign tokenizer in a child with limits.

A tokenizer.json can multiply each text: by a normalizer, a pre-tokenizer or a decoder. When memory
runs out, tokenizers ends the process. So texts are encoded and decoded once in a child before the
file is opened here. The child leaves the vocabulary out, which takes most of the time to load and
multiplies nothing.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

from compressor.errors import DataError
from compressor.foreign_files.trials import limit_resources, trial_problem

_STRING = r'"[^"\\]*+(?:\\.[^"\\]*+)*+"'
_FLAT = rf'[^{{}}\[\]"]*+(?:{_STRING}[^{{}}\[\]"]*+)*+'
"""Strings and numbers without a bracket between them."""
_VOCABULARY = re.compile(
    rf'("(?:vocab|merges)"\s*+:\s*+)(?:\{{{_FLAT}\}}|\[(?:{_FLAT}\[{_FLAT}\])*+{_FLAT}\])',
    re.DOTALL,
)
"""An object of tokens and their ids, or a list of strings or of pairs."""
_ONE_WORD = {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}
_ASCII = "".join(map(chr, range(0x20, 0x7F))) + "\n"
_REPEATS = 300
_OTHERS = "".join(map(chr, (*range(0xA0, 0xD800), *range(0xE000, 0x10000))))
_NO_MEMORY = "memory allocation"
"""Words of the panic of a library in C that tokenizers calls."""
_PARTS = ("normalizer", "pre_tokenizer", "post_processor", "decoder")


def check_encodes(file: Path) -> None:
    """Check that a tokenizer encodes and decodes texts of 100,000 characters in little memory.

    Args:
        file: the tokenizer.json, which has been checked to be a regular file of JSON.

    Raises:
        DataError: it does not.
    """
    status = file.stat()
    if problem := _problem(file, status.st_mtime_ns, status.st_size):
        raise DataError(
            f"{file}: encoding a text of 100,000 characters {problem}",
            remedy="copy the checkpoint's tokenizer.json again, or use another tokenizer",
        )


@lru_cache(maxsize=64)
def _problem(file: Path, mtime_ns: int, size: int) -> str | None:  # noqa: ARG001  keys
    return trial_problem(__name__, str(file.absolute()).encode(errors="surrogateescape"))


def main() -> None:
    """Encode and decode texts by the file that stdin names; other errors show where it is used."""
    limit_resources()
    name = sys.stdin.buffer.read().decode(errors="surrogateescape")
    try:
        _encode(Path(name).read_text(encoding="utf-8"))
    except MemoryError:
        sys.exit(1)
    except BaseException as error:  # noqa: BLE001  panics too
        if _NO_MEMORY in str(error):
            sys.exit(1)


def _encode(content: str) -> None:
    from tokenizers import Tokenizer

    tree = json.loads(_VOCABULARY.sub(r"\1[]", content))
    parts = {name: tree.get(name) for name in _PARTS}
    tokenizer = Tokenizer.from_str(json.dumps({**parts, "added_tokens": [], "model": _ONE_WORD}))
    for text in (" ".join(_strings(parts)), _ASCII * _REPEATS, _OTHERS):
        tokenizer.encode(text)
        if tokenizer.decoder is not None:
            tokenizer.decoder.decode(text.splitlines())


def _strings(value: Any) -> Iterator[str]:
    """Yield all strings, such as the pattern to which a rule applies."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for child in value.values() if isinstance(value, dict) else value:
            yield from _strings(child)


if __name__ == "__main__":
    with suppress(BrokenPipeError):
        main()
