"""Two models layer by layer on the same samples: where they part, and how much each layer adds."""

from __future__ import annotations

import math

from pydantic import BaseModel, ConfigDict

from compressor.analysis.tensors import Array, relative_error, snr_db
from compressor.data.contract import Batch
from compressor.errors import UsageError
from compressor.runtimes.layers import Layers, reshape_like


class LayerDifference(BaseModel):
    """One layer of both models; figures are None where its outputs do not have the same number of values."""

    model_config = ConfigDict(frozen=True)

    layer: str
    order: int
    """Its place in the order of computation, from 0."""
    error: float | None
    """Σ(b−a)² / Σa² of what it makes, with all that came before it."""
    snr_db: float | None
    """The same as a signal-to-noise ratio; None for no error at all."""
    added: float | None
    """The error of b's layer alone: fed what a's layer read. None where it cannot be fed that."""


class LayerComparison(BaseModel):
    """The whole."""

    model_config = ConfigDict(frozen=True)

    samples: int
    layers: tuple[LayerDifference, ...]
    """Those that add most first."""
    answers: dict[str, float]
    """Error of each output of the models."""
    parts_at: str | None
    """The first layer whose error is beyond what the order of sums explains."""
    only_a: tuple[str, ...]
    only_b: tuple[str, ...]


_SUMS = 1e-8  # relative error, 80 dB: what float32 sums in another order differ by stays well below


def compare_layers(a: Layers, b: Layers, batch: Batch) -> LayerComparison:
    """Feed both the same samples, and each layer of ``b`` what that of ``a`` read.

    The error at a layer holds what came down to it, which a later layer may make larger: it would point at the wrong one. What a
    layer adds is its own alone.

    Raises:
        UsageError: the two have no layer in common.
    """
    ours, theirs = a.trace(batch), b.trace(batch)
    common = [name for name in ours.outputs if name in theirs.outputs]
    if not common:
        raise UsageError(
            "the two have no layer of the same name", remedy="compare artifacts of the same family"
        )
    alone = b.alone(batch, {name: ours.inputs[name] for name in common})
    found = []
    for order, name in enumerate(common):
        wanted = ours.outputs[name]
        error = _error(theirs.outputs[name], wanted)
        added = _error(alone[name], wanted) if name in alone else None
        decibels = None if error is None else snr_db(error)
        found.append(
            LayerDifference(layer=name, order=order, error=error, snr_db=decibels, added=added)
        )
    answers = {
        name: error
        for name, value in ours.answers.items()
        if name in theirs.answers and (error := _error(theirs.answers[name], value)) is not None
    }
    return LayerComparison(
        samples=len(next(iter(batch.values()))),
        layers=tuple(
            sorted(found, key=lambda one: (-_known(one.added), -_known(one.error), one.order))
        ),
        answers=answers,
        parts_at=next((one.layer for one in found if _known(one.error) > _SUMS), None),
        only_a=tuple(name for name in ours.outputs if name not in theirs.outputs),
        only_b=tuple(name for name in theirs.outputs if name not in ours.outputs),
    )


def _error(of: Array, against: Array) -> float | None:
    fitting = reshape_like(of, against)
    if fitting is None:
        return None
    error = relative_error(fitting, against)
    return error if math.isfinite(error) else None


def _known(value: float | None) -> float:
    return -1.0 if value is None else value
