"""Does what was written compute what was read? On real samples, one at a time and many at a time.

Shapes: N samples, V values of one output.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from compressor.data.contract import Batch
from compressor.errors import DataError, NumericalError, ParityError
from compressor.runtimes.session import Session

if TYPE_CHECKING:
    from passes.export_onnx.step import ParityConfig

Array = np.ndarray[Any, Any]
ANSWER = "logits"


@dataclass(frozen=True, slots=True)
class Limits:
    """How far an exported model may be from its parent."""

    max_abs: float
    cosine: float
    agreement: float
    tie: float
    """Answers that the parent rates alike within it count as the same."""


def limits_of(config: ParityConfig, *, integers: bool) -> Limits:
    """What the config says, and for what it does not, what is usual for such a model."""
    max_abs, cosine, agreement = (math.inf, 0.98, 0.9) if integers else (1e-3, 0.9999, 1.0)
    return Limits(
        config.max_abs or max_abs,
        cosine if config.cosine is None else config.cosine,
        agreement if config.agreement is None else config.agreement,
        config.max_abs or 1e-3,
    )


@dataclass(frozen=True, slots=True)
class Parity:
    """How far an exported model is from its parent at one batch size."""

    batch_size: int
    samples: int
    max_abs: float
    cosine: float
    """The smallest of any sample."""
    agreement: float | None
    """The part of the samples with the same answer; None for models without one."""
    worst: int
    """The sample with the largest |Δ|, counted in the set from 0."""
    worst_output: str

    def offences(self, limits: Limits) -> list[str]:
        """What is beyond the limits."""
        found = []
        if not self.max_abs <= limits.max_abs:
            found.append(
                f"max|Δ| {self.max_abs:.3g} > {limits.max_abs:g} (sample {self.worst}, output {self.worst_output})"
            )
        if not self.cosine >= limits.cosine:
            found.append(f"cosine {self.cosine:.6f} < {limits.cosine:g}")
        if self.agreement is not None and not self.agreement >= limits.agreement:
            found.append(
                f"answers agree in {self.agreement:.1%} of {self.samples} samples < {limits.agreement:.1%}"
            )
        return found


def compare(
    reference: Session,
    exported: Session,
    batches: Sequence[Batch],
    config: ParityConfig,
    *,
    integers: bool = False,
) -> tuple[Parity, ...]:
    """Parity at batch size 1 and at ``config.batch_size``; ``batches`` are of the latter size, the last may be shorter.

    With ``integers`` the usual limits are those of a quantized model.

    Raises:
        DataError: there are no samples.
        NumericalError: the reference answers with NaN.
        ParityError: a limit is broken; all numbers and the worst sample are told.
    """
    if not batches:
        raise DataError(f"the set {config.data!r} is empty: there is nothing to compare on")
    limits = limits_of(config, integers=integers)
    wanted = _joined([reference.run(batch) for batch in batches])
    for name, values in wanted.items():
        if bad := int((~np.isfinite(values.reshape(len(values), -1))).any(axis=1).sum()):
            raise NumericalError(
                f"the torch model answers {bad} of {len(values)} samples with NaN or infinity in {name}"
            )
    results = []
    for size, feeds in ((1, list(_singles(batches))), (config.batch_size, batches)):
        got = _joined([exported.run(batch) for batch in feeds])
        results.append(_parity(size, wanted, got, limits.tie))
    offences = [
        f"at batch size {one.batch_size}: {line}"
        for one in results
        for line in one.offences(limits)
    ]
    if offences:
        raise ParityError(
            f"the exported model does not compute what the torch model does ({exported.runtime} against "
            f"{reference.runtime}, {len(next(iter(wanted.values())))} samples of {config.data!r}):\n"
            + "\n".join(f"    {line}" for line in offences),
            remedy="try another `opset`, or `simplify: false`; `parity:` holds the limits",
        )
    return tuple(results)


def _singles(batches: Sequence[Batch]) -> Iterator[Batch]:
    for batch in batches:
        for index in range(len(next(iter(batch.values())))):
            yield {name: array[index : index + 1] for name, array in batch.items()}


def _joined(outputs: Sequence[Batch]) -> Batch:
    return {name: np.concatenate([one[name] for one in outputs]) for name in outputs[0]}


def _parity(batch_size: int, wanted: Batch, got: Batch, tie: float) -> Parity:
    worst, worst_output, largest, cosine = 0, "", -1.0, 1.0
    for name, reference in wanted.items():
        if name not in got or got[name].shape != reference.shape:
            shape = list(got[name].shape) if name in got else "nothing"
            raise ParityError(f"output {name}: {shape} where torch gives {list(reference.shape)}")
        a_NV = reference.reshape(len(reference), -1).astype(np.float64)
        b_NV = got[name].reshape(len(reference), -1).astype(np.float64)
        # NaN in the exported model is as wrong as can be.
        delta_N = np.nan_to_num(np.abs(a_NV - b_NV).max(axis=1), nan=np.inf)
        if delta_N.max() > largest:
            worst, worst_output, largest = int(delta_N.argmax()), name, float(delta_N.max())
        cosine = min(cosine, float(_cosines(a_NV, b_NV).min()))
    agreement = _agreement(wanted[ANSWER], got[ANSWER], tie) if ANSWER in wanted else None
    return Parity(
        batch_size,
        len(next(iter(wanted.values()))),
        largest,
        cosine,
        agreement,
        worst,
        worst_output,
    )


def _cosines(a_NV: Array, b_NV: Array) -> Array:
    """Cosine by sample; 1 where both are zero, 0 where one is, or is not finite."""
    lengths_N = np.linalg.norm(a_NV, axis=1) * np.linalg.norm(b_NV, axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        cosines_N = np.nan_to_num(
            (a_NV * b_NV).sum(axis=1) / lengths_N, nan=0.0, posinf=0.0, neginf=0.0
        )
    both_zero_N = ~a_NV.any(axis=1) & ~b_NV.any(axis=1)
    return np.where(both_zero_N, 1.0, cosines_N)


def _agreement(reference_NC: Array, exported_NC: Array, tie: float) -> float:
    """The part of the samples whose answer is the reference's, or one that the reference rates as high within ``tie``."""
    rows = np.arange(len(reference_NC))
    chosen_N = reference_NC[rows, exported_NC.argmax(axis=1)]
    return float((reference_NC.max(axis=1) - chosen_N <= tie).mean())
