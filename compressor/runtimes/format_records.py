"""Records that formats return: what a model costs, how integers compute it, where it starts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from compressor.models.families.module.config import ModuleConfig

SampleShapes = Mapping[str, tuple[int, ...]]
"""Input name to the shape of one sample, batch axis (1) included.

It fixes the free sizes of an ONNX graph.
"""


@dataclass(frozen=True, slots=True)
class Cost:
    """Static cost of a model; None where a value cannot be determined."""

    size_bytes: int
    parameters: int | None = None
    macs: int | None = None
    """Multiply-accumulates of one forward pass of one sample (or token)."""
    weight_bytes: int | None = None
    """Bytes of the weights alone, for files that also hold code, such as an engine's kernels."""


@dataclass(frozen=True, slots=True)
class LowPrecision:
    """Use of integer arithmetic by the runtime, for the report of `gain`."""

    weights: float | None = None
    """Fraction of weight values that integer kernels multiply."""
    macs: float | None = None
    """Fraction of multiply-accumulates that integer kernels compute."""
    reasons: tuple[str, ...] = ()
    """Reasons why the model may not be faster than its parent, most expensive first."""


@dataclass(frozen=True, slots=True)
class ModuleSource:
    """A module that a pipeline starts from: how it is built, and its weights."""

    config: ModuleConfig
    weights: Path | None = None
    """A file of weights that fit; None to initialize them."""
    notes: tuple[str, ...] = ()
    """Lines for the user, such as the mean and deviation of the pictures."""
    data_fields: Mapping[str, Any] = field(default_factory=dict)
    """Values of fields of its data set, for sources that have them: mean and deviation."""
