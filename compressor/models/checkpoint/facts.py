"""What can be told of a model folder without loading it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypedDict

from compressor.config.discovery import FAMILIES, load
from compressor.models.checkpoint.files import read_description
from compressor.models.contract import Family


class Facts(TypedDict):
    """Family, config, size; ``macs`` is None where the family cannot tell."""

    family: str
    config: dict[str, Any]
    parameters: int
    """Tied weights once."""
    macs: int | None
    """Multiply-accumulates of one forward pass of one sample."""
    size_bytes: int
    """All files of the folder."""


def facts_of(folder: Path) -> Facts:
    """From config.json and the family's arithmetic; neither torch nor the weights are loaded.

    Raises:
        ModelError: as ``read_description``.
    """
    name, config = read_description(folder)
    family: Family[Any] = load(FAMILIES, name)
    return {
        "family": name,
        "config": config.model_dump(mode="json"),
        "parameters": sum(family.parameters(config).values()),
        "macs": family.macs(config) or None,
        "size_bytes": size_bytes(folder),
    }


def size_bytes(folder: Path) -> int:
    """Bytes of all files below ``folder``."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
