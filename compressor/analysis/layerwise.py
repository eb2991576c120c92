"""Compare two models layer by layer on the same samples."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from pydantic import BaseModel, ConfigDict

from compressor.analysis.tensors import Array, relative_error, snr_db
from compressor.data.contract import Batch
from compressor.errors import UsageError
from compressor.runtimes.layers import Layers, Trace, reshape_like


class LayerDifference(BaseModel):
    """One layer of both models; errors are None where the numbers of output values differ."""

    model_config = ConfigDict(frozen=True)

    layer: str
    order: int
    """Position in the order of execution, from 0."""
    error: float | None
    """Σ(b−a)² / Σa² of its output, including the error of all layers before it."""
    snr_db: float | None
    """``error`` as a signal-to-noise ratio in dB; None for an error of 0."""
    added: float | None
    """Error of b's layer alone, for the input of a's layer; None where that input does not fit."""


class LayerComparison(BaseModel):
    """Result of ``compare_layers``."""

    model_config = ConfigDict(frozen=True)

    samples: int
    layers: tuple[LayerDifference, ...]
    """Layers, largest added error first."""
    answers: dict[str, float]
    """Error of each model output."""
    parts_at: str | None
    """The first layer whose error exceeds that of reordered float32 sums; None if there is none."""
    only_a: tuple[str, ...]
    """Layers that only model a has."""
    only_b: tuple[str, ...]
    """Layers that only model b has."""
    paired_by_name: bool = False
    """True if nothing but equal names states that layers are the same: neither file notes its
    layers, as those that a pass wrote do."""


_NO_LAYERS = (
    "compare artifacts of the same family, or leave out `--pipeline`: metrics are compared then"
)
_ROUNDING_ERROR = 1e-8
"""Relative error (80 dB) well above that of float32 sums in another order."""


def compare_layers(a: Layers, b: Layers, batch: Batch) -> LayerComparison:
    """Run both models on the same samples, and each layer of ``b`` on the input of ``a``'s layer.

    The error of a layer's output includes that of its input, which later layers may amplify, so the
    largest error need not be at the faulty layer. The added error is the layer's own.

    Raises:
        UsageError: the models have no layer in common.
    """
    calls = _split_into_calls(a, b, batch)
    trace_a, trace_b, alone = _trace_calls(a, b, calls)
    common = [name for name in trace_a.outputs if name in trace_b.outputs]
    layers = []
    from_zero = trace_a.from_zero | trace_b.from_zero
    for order, name in enumerate(common):
        # A grid that starts at 0 cuts off what the ReLU behind it would: that is no error.
        lowest = 0.0 if name in from_zero else -math.inf
        expected = _at_least(lowest, trace_a.outputs[name])
        error = _error(_at_least(lowest, trace_b.outputs[name]), expected)
        added = _error(_at_least(lowest, alone[name]), expected) if name in alone else None
        decibels = None if error is None else snr_db(error)
        layers.append(
            LayerDifference(layer=name, order=order, error=error, snr_db=decibels, added=added)
        )
    outputs = {
        name: error
        for name, value in trace_a.answers.items()
        if name in trace_b.answers and (error := _error(trace_b.answers[name], value)) is not None
    }
    return LayerComparison(
        samples=sum(map(_samples, calls)),
        layers=tuple(sorted(layers, key=_sort_key)),
        answers=outputs,
        parts_at=next(
            (layer.layer for layer in layers if _or_minus_one(layer.error) > _ROUNDING_ERROR), None
        ),
        only_a=tuple(name for name in trace_a.outputs if name not in trace_b.outputs),
        only_b=tuple(name for name in trace_b.outputs if name not in trace_a.outputs),
        paired_by_name=not (a.notes_layers or b.notes_layers),
    )


def _split_into_calls(a: Layers, b: Layers, batch: Batch) -> list[Batch]:
    """Return the samples in batches that both models take; samples that fill none are left out.

    Raises:
        UsageError: there are fewer samples than a call takes.
    """
    count = _samples(batch)
    sizes = {size for layers in (a, b) if (size := layers.samples_per_call(batch)) is not None}
    size = max(sizes, default=count)
    if size > count:
        raise UsageError(
            f"a call of the models takes {size} samples, and there are {count}",
            remedy=f"--samples {size}",
        )
    starts = range(0, count - size + 1, size)
    return [
        {name: array[start : start + size] for name, array in batch.items()} for start in starts
    ]


def _trace_calls(
    a: Layers, b: Layers, calls: Sequence[Batch]
) -> tuple[Trace, Trace, dict[str, Array]]:
    """Return the traces of both models, and the layers of ``b`` on the inputs of ``a``'s.

    Values of several calls lie one behind the other.

    Raises:
        UsageError: the models have no layer in common.
    """
    traces: list[tuple[Trace, Trace, Mapping[str, Array]]] = []
    for part in calls:
        trace_a, trace_b = a.trace(part), b.trace(part)
        common = {name: trace_a.inputs[name] for name in trace_a.outputs if name in trace_b.outputs}
        if not common:
            raise UsageError("the models have no layer of the same name", remedy=_NO_LAYERS)
        traces.append((trace_a, trace_b, b.alone(part, common)))
    if len(traces) == 1:
        [(trace_a, trace_b, alone)] = traces
        return trace_a, trace_b, dict(alone)
    all_a, all_b, all_alone = zip(*traces, strict=True)
    return _joined_traces(all_a), _joined_traces(all_b), _joined(all_alone)


def _joined_traces(traces: Sequence[Trace]) -> Trace:
    return Trace(
        _joined([trace.inputs for trace in traces]),
        _joined([trace.outputs for trace in traces]),
        _joined([trace.answers for trace in traces]),
        frozenset.union(*(trace.from_zero for trace in traces)),
    )


def _joined(parts: Sequence[Mapping[str, Array]]) -> dict[str, Array]:
    """Return the values of several calls, flat, by name; names that a call lacks are left out."""
    names = [name for name in parts[0] if all(name in part for part in parts)]
    return {name: np.concatenate([part[name].reshape(-1) for part in parts]) for name in names}


def _samples(batch: Batch) -> int:
    return len(next(iter(batch.values())))


def _sort_key(layer: LayerDifference) -> tuple[float, float, int]:
    return -_or_minus_one(layer.added), -_or_minus_one(layer.error), layer.order


def _at_least(lowest: float, values: Array) -> Array:
    return values if lowest == -math.inf else np.maximum(values, lowest).astype(values.dtype)


def _error(values: Array, reference: Array) -> float | None:
    reshaped = reshape_like(values, reference)
    if reshaped is None:
        return None
    error = relative_error(reshaped, reference)
    return error if math.isfinite(error) else None


def _or_minus_one(error: float | None) -> float:
    return -1.0 if error is None else error
