"""Parameters and weight memory of a family's preset, computed without allocating the model."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict

from compressor.config import discovery
from compressor.errors import UsageError
from compressor.models.contract import Family

BYTES_PER_WEIGHT = {"FP32": 4.0, "FP16": 2.0, "INT8": 1.0, "INT4": 0.5}


class ModelSizes(BaseModel):
    """Parameters of a model by part, and the memory of its weights at each precision."""

    model_config = ConfigDict(frozen=True)

    family: str
    preset: str
    parts: dict[str, int]
    parameters: int
    macs: int | None
    unit: str
    """Unit of ``macs``: one sample, or one token."""
    bytes_at: dict[str, int]
    """Precision to bytes of the weights, without quantization scales."""


def compute_model_sizes(target: str) -> ModelSizes:
    """Return the sizes of ``family:preset``.

    Raises:
        UsageError: there is no such artifact, family or preset.
    """
    name, colon, preset = target.partition(":")
    if not colon:
        raise UsageError(
            f"{target} does not exist: expected an artifact, a store, a model or family:preset",
            remedy="`autoglm-compress run` builds a store; families: "
            + ", ".join(discovery.names(discovery.FAMILIES)),
        )
    family: Family[Any] = discovery.load(discovery.FAMILIES, name)
    if preset not in family.presets:
        raise UsageError(
            f"{name} has no preset {preset!r}",
            remedy=discovery.suggestion(preset, list(family.presets)),
        )
    config = family.presets[preset]
    parts = family.parameters(config)
    total = sum(parts.values())
    sizes = {precision: int(total * width) for precision, width in BYTES_PER_WEIGHT.items()}
    macs = family.macs(config) or None
    return ModelSizes(
        family=name,
        preset=preset,
        parts=parts,
        parameters=total,
        macs=macs,
        unit=family.signature(config).unit,
        bytes_at=sizes,
    )
