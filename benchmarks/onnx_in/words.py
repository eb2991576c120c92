"""Sentences, and files of the machine."""

from __future__ import annotations

import json
import zlib
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.onnx_in.wheels import Wheels


def _sentences(wheels: Wheels, split: str) -> list[dict[str, Any]]:
    """Return the sentences of a split: 3 of 4 are for evaluation."""
    file = wheels.unpack("hsk-sentences-audio") / "hsk_sentences_audio/data/sentences.json"
    records: list[dict[str, Any]] = json.loads(file.read_text(encoding="utf-8"))
    calibration = split == "calibration"
    return [record for index, record in enumerate(records) if (index % 4 == 0) == calibration]


def english(wheels: Wheels, split: str) -> list[str]:
    """Return English sentences."""
    return [record["translation"]["en"] for record in _sentences(wheels, split)]


def chinese(wheels: Wheels, split: str) -> list[str]:
    """Return Chinese sentences."""
    return [record["chinese"] for record in _sentences(wheels, split)]


def files(split: str, count: int, per_suffix: int = 6) -> list[Path]:
    """Return files of this machine, at most ``per_suffix`` of one suffix."""
    found: list[Path] = []
    seen: Counter[str] = Counter()
    roots = ("/usr/share", "/usr/lib", "/usr/bin", "/etc")
    for path in sorted(path for root in roots for path in Path(root).rglob("*")):
        is_calibration = zlib.crc32(str(path).encode()) % 3 == 0
        if is_calibration != (split == "calibration") or seen[path.suffix] >= per_suffix:
            continue
        if path.is_file() and not path.is_symlink() and path.stat().st_size > 2000:
            seen[path.suffix] += 1
            found.append(path)
    chosen = np.random.default_rng(0).permutation(len(found))[:count]
    return [found[int(index)] for index in chosen]
