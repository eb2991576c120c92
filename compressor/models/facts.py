"""Facts about a model that are known without loading its weights."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from compressor.models.capabilities.capability import C


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """Facts about a model, planned or on disk; None where a value cannot be determined."""

    family: str | None = None
    config: Mapping[str, Any] | None = None
    parameters: int | None = None
    """Tied weights counted once."""
    macs: int | None = None
    """Multiply-accumulates of one forward pass of one sample, or of one token."""
    size_bytes: int | None = None
    """All files of the model's folder."""

    def capability(self, kind: type[C]) -> C | None:
        """Return a capability of the model; None if it lacks it, or if its architecture is unknown.

        Raises:
            UsageError: the family is not installed.
        """
        from compressor.config.discovery import FAMILIES, load

        if self.family is None or self.config is None:
            return None
        family = load(FAMILIES, self.family)
        config = family.Config.model_validate_json(json.dumps(dict(self.config)))
        return cast("C | None", family.capability(kind, config))


def facts_of(folder: Path) -> ModelFacts:
    """Return the facts of a model folder, from config.json and the family's arithmetic.

    Neither torch nor the weights are loaded.

    Raises:
        ModelError: as ``read_description``.
    """
    from compressor.models.checkpoint.description import read_description

    model = read_description(folder)
    return ModelFacts(
        family=model.family.name,
        config=model.config.model_dump(mode="json"),
        parameters=sum(model.family.parameters(model.config).values()),
        macs=model.family.macs(model.config) or None,
        size_bytes=size_bytes(folder),
    )


def size_bytes(path: Path) -> int:
    """Return the bytes of a file, or of all files below a folder."""
    if path.is_file():
        return path.stat().st_size
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
