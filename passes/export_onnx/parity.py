"""Comparison of an exported model with its parent, one sample at a time and in batches.

Shapes: N samples, V values of one output, C classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum

import numpy as np

from compressor.data.contract import Batch
from compressor.errors import DataError, ParityError
from compressor.graphs.values import Array
from compressor.runtimes.session import Session
from passes.export_onnx.config import ParityConfig
from passes.export_onnx.reference_checks import check_finite, check_independent, without_masked

LOGITS = "logits"
"""The output whose largest value is a model's answer."""
_TOKEN_LOGITS_RANK = 3
"""Dimensions of logits whose classes come last; images have their classes in front."""
_DEFAULT_TIE = 1e-3


Run = Callable[[Batch], Batch | None]
"""Computes the outputs of a batch; None if that is not possible."""


_Compute = Callable[[Batch], Batch]
_Batching = Callable[[_Compute, Batch], Batch]
"""Computes a batch with a model, whole or one sample at a time."""


class _NotPossibleError(Exception):
    """A model cannot compute a sample."""


class Tolerance(Enum):
    """Usual limits of a kind of model: max |Δ|, cosine, agreement."""

    FLOAT = (1e-3, 0.9999, 1.0)
    HALF = (math.inf, 0.999, 0.9)
    """A graph in float16, which has 11 bits of precision."""
    QUANTIZED = (math.inf, 0.98, 0.9)
    """Two runtimes may round a value to different neighbours."""
    QUANTIZED_DECODER = (math.inf, -1.0, 0.0)
    """Only the KL divergence of the next token is limited."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Largest deviation of an exported model from its parent."""

    max_abs: float
    cosine: float
    agreement: float
    tie: float
    """Answers that the parent rates alike within it count as equal."""

    @classmethod
    def from_config(cls, config: ParityConfig, tolerance: Tolerance) -> Limits:
        """Return the limits of a config, with the usual ones for fields that are not set."""
        max_abs, cosine, agreement = tolerance.value
        return cls(
            config.max_abs or max_abs,
            cosine if config.cosine is None else config.cosine,
            agreement if config.agreement is None else config.agreement,
            config.max_abs or _DEFAULT_TIE,
        )


@dataclass(frozen=True, slots=True)
class Parity:
    """Deviation of an exported model from its parent at one batch size."""

    batch_size: int
    samples: int
    max_abs: float
    cosine: float
    """The smallest of any sample."""
    agreement: float | None
    """Fraction of the samples with the same answer; None for models without one."""
    worst: int
    """Index in the data set of the sample with the largest |Δ|."""
    worst_output: str

    def violations(self, limits: Limits) -> list[str]:
        """Return a line for each limit that is exceeded."""
        lines = []
        if not self.max_abs <= limits.max_abs:  # true for NaN too
            where = f"sample {self.worst}, output {self.worst_output}"
            lines.append(f"max|Δ| {self.max_abs:.3g} > {limits.max_abs:g} ({where})")
        if not self.cosine >= limits.cosine:
            lines.append(f"cosine {self.cosine:.6f} < {limits.cosine:g}")
        if self.agreement is not None and not self.agreement >= limits.agreement:
            lines.append(
                f"answers agree in {self.agreement:.1%} of {self.samples} samples "
                f"< {limits.agreement:.1%}"
            )
        return lines


def compare(
    reference: Session,
    exported: Session,
    batches: Sequence[Batch],
    config: ParityConfig,
    *,
    tolerance: Tolerance = Tolerance.FLOAT,
    precise: Run | None = None,
    repeated: Run | None = None,
) -> tuple[Parity, ...]:
    """Compare an exported model with its parent at batch size 1 and at ``config.batch_size``.

    A graph with a fixed batch size is compared at that size alone.

    Detectors and others choose among scores, and two may differ by less than float32 resolves. So
    if limits are exceeded, a sample also counts as equal if it is what the parent computes in
    float64, or with the choices of the exported model.

    Args:
        reference: the parent.
        exported: the exported model.
        batches: samples in batches of ``config.batch_size``; the last may be smaller.
        config: the limits.
        tolerance: the usual limits of such a model.
        precise: returns the outputs of the parent in float64, or None if it cannot compute so.
        repeated: returns the outputs of the parent with the choices of the exported model, or None
            if that chooses nothing, or what the parent rates lower.

    Raises:
        DataError: there are no samples.
        NumericalError: outputs of the reference are not finite.
        ParityError: limits are exceeded; the message lists all of them and the worst sample, or
            states that the parent's outputs depend on the other samples of a batch.
    """
    if not batches:
        raise DataError(f"the data set {config.data!r} is empty: there is nothing to compare")
    limits = Limits.from_config(config, tolerance)
    fixed = exported.inputs[0].shape[0]
    runs: list[tuple[int, _Batching]] = [(1, _alone), (config.batch_size, _together)]
    if isinstance(fixed, int):
        batches, runs = _of_size(batches, fixed), [(fixed, _together)]
    expected = [reference.run(batch) for batch in batches]
    check_finite(expected)
    expected_alone = expected
    mixes = _mixes_samples(reference, batches[0], expected[0])
    if mixes:
        expected_alone = [_alone(reference.run, batch) for batch in batches]
    actual = {size: [apply(exported.run, batch) for batch in batches] for size, apply in runs}
    results = [
        _parity(size, expected_alone if size == 1 else expected, actual[size], limits.tie)
        for size, _ in runs
    ]
    violations = _violations(results, limits)
    for other in (precise, repeated):
        if violations and other is not None and not mixes:
            results = []
            for size, apply in runs:
                exact = [_outputs(apply, other, batch) for batch in batches]
                pairs = zip(expected, exact, actual[size], strict=True)
                nearest = [_nearest(*outputs) for outputs in pairs]
                results.append(_parity(size, nearest, actual[size], limits.tie))
            violations = _violations(results, limits)
    if violations:
        if not mixes:
            check_independent(reference, batches[0], expected[0])
        count = results[0].samples
        raise ParityError(
            f"the exported model does not compute what the torch model does ({exported.runtime} "
            f"against {reference.runtime}, {count} samples of {config.data!r}):\n"
            + "\n".join(f"    {line}" for line in violations),
            remedy="try another `opset`, or `simplify: false`; `parity:` sets the limits",
        )
    return tuple(results)


def _of_size(batches: Sequence[Batch], size: int) -> list[Batch]:
    """Return batches of one size; samples that do not fill one are left out.

    Raises:
        DataError: there are fewer samples.
    """
    parts = [
        {name: array[start : start + size] for name, array in batch.items()}
        for batch in batches
        for start in range(0, len(next(iter(batch.values()))) - size + 1, size)
    ]
    if not parts:
        raise DataError(
            f"the graph has the fixed batch size {size}, and there are fewer samples",
            remedy="name a data set with more samples, or raise `parity.num_samples`",
        )
    return parts


def _violations(results: Sequence[Parity], limits: Limits) -> list[str]:
    return [
        f"at batch size {result.batch_size}: {line}"
        for result in results
        for line in result.violations(limits)
    ]


def _nearest(expected: Batch, exact: Batch | None, actual: Batch) -> Batch:
    """Return, of two references, the outputs of each sample that are nearer to the actual ones."""
    if exact is None or any(exact[name].shape != actual[name].shape for name in expected):
        return expected

    def distances(reference: Batch) -> Array:
        rows = [np.abs(reference[name] - actual[name]) for name in expected]
        largest = [row.reshape(len(row), -1).max(axis=1, initial=0) for row in rows]
        result: Array = np.max(largest, axis=0)
        return result

    is_nearer_N = distances(exact) < distances(expected)
    return {
        name: np.where(is_nearer_N.reshape(-1, *[1] * (values.ndim - 1)), exact[name], values)
        for name, values in expected.items()
    }


def _outputs(apply: _Batching, other: Run, batch: Batch) -> Batch | None:
    """Return the outputs of a model that cannot compute every sample; None if one is missing."""

    def run(sample: Batch) -> Batch:
        outputs = other(sample)
        if outputs is None:
            raise _NotPossibleError
        return outputs

    try:
        return apply(run, batch)
    except _NotPossibleError:
        return None


def _alone(run: _Compute, batch: Batch) -> Batch:
    """Return the outputs of the samples of a batch, each computed alone."""
    return _concatenate([run(sample) for sample in _single_samples(batch)])


def _together(run: _Compute, batch: Batch) -> Batch:
    """Return the outputs of a batch, computed at once."""
    return run(batch)


def _mixes_samples(session: Session, batch: Batch, outputs: Batch) -> bool:
    """Return True if the shape of a sample's outputs depends on the others, as similarities do."""
    alone = session.run(next(_single_samples(batch)))
    return any(alone[name].shape[1:] != values.shape[1:] for name, values in outputs.items())


def _single_samples(batch: Batch) -> Iterator[Batch]:
    for index in range(len(next(iter(batch.values())))):
        yield {name: array[index : index + 1] for name, array in batch.items()}


def _concatenate(outputs: Sequence[Batch]) -> Batch:
    return {name: np.concatenate([output[name] for output in outputs]) for name in outputs[0]}


def _parity(
    batch_size: int, expected: Sequence[Batch], actual: Iterable[Batch], tie: float
) -> Parity:
    """Compare batches, whose outputs may have another length in each."""
    worst, worst_output, largest, cosine = 0, "", -1.0, 1.0
    samples, agreeing = 0, []
    for reference, exported in zip(expected, actual, strict=True):
        for name, values in reference.items():
            if name not in exported or exported[name].shape != values.shape:
                shape = list(exported[name].shape) if name in exported else "nothing"
                raise ParityError(f"output {name}: {shape} where torch gives {list(values.shape)}")
            rows_NV = (array.reshape(len(values), -1) for array in (values, exported[name]))
            a_NV, b_NV = without_masked(*(row_NV.astype(np.float64) for row_NV in rows_NV))
            # NaN in the exported model counts as an infinite difference.
            delta_N = np.nan_to_num(np.abs(a_NV - b_NV).max(axis=1, initial=0), nan=np.inf)
            if delta_N.max() > largest:
                worst = samples + int(delta_N.argmax())
                worst_output, largest = name, float(delta_N.max())
            cosine = min(cosine, float(cosines(a_NV, b_NV).min()))
        samples += len(next(iter(reference.values())))
        if LOGITS in reference:
            agreeing.append(_agreeing(reference[LOGITS], exported[LOGITS], tie))
    agreement = float(np.concatenate(agreeing).mean()) if agreeing else None
    return Parity(batch_size, samples, largest, cosine, agreement, worst, worst_output)


def cosines(a_NV: Array, b_NV: Array) -> Array:
    """Return the cosine by sample: 1 if both are zero, 0 if one is zero or not finite."""
    lengths_N = np.linalg.norm(a_NV, axis=1) * np.linalg.norm(b_NV, axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        cosines_N = (a_NV * b_NV).sum(axis=1) / lengths_N
    both_zero_N = ~a_NV.any(axis=1) & ~b_NV.any(axis=1)
    return np.where(both_zero_N, 1.0, np.nan_to_num(cosines_N, nan=0.0, posinf=0.0, neginf=0.0))


def _agreeing(expected: Array, actual: Array, tie: float) -> Array:
    """Return where the reference rates the answer highest, within ``tie``: bool, flat.

    Args:
        expected: logits [N, C], [N, T, C] of tokens or boxes, or [N, C, height, width] of pixels.
        actual: logits of the same shape.
        tie: logits that differ by less count as equal.
    """
    axis = 1 if expected.ndim > _TOKEN_LOGITS_RANK else -1
    chosen = np.expand_dims(actual.argmax(axis=axis), axis)
    chosen_logits = np.take_along_axis(expected, chosen, axis)
    result: Array = (expected.max(axis=axis, keepdims=True) - chosen_logits <= tie).ravel()
    return result
