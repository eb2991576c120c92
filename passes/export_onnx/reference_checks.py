"""Checks of what an exported model is compared with: the outputs of its parent.

Shapes: N samples, V values of one output.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from compressor.data.contract import Batch
from compressor.errors import NumericalError, ParityError
from compressor.graphs.values import Array
from compressor.runtimes.session import Session

_RELATIVE_NOISE, _NOISE = 1e-4, 1e-5
"""Differences of the same sample in two batches of one size, such as sums in another order."""


def check_independent(reference: Session, batch: Batch, expected: Batch) -> None:
    """Check that the parent's outputs for a sample do not depend on the others of its batch.

    The first sample is computed among copies of itself: in a batch of the same size, the same
    kernels run, so that nothing else differs.

    Args:
        reference: the parent.
        batch: its inputs.
        expected: its outputs.

    Raises:
        ParityError: they do, so no graph can equal the parent in batches of other sizes; or the
            parent gives other outputs in every run.
    """
    copies = {name: np.repeat(array[:1], len(array), axis=0) for name, array in batch.items()}
    among_copies = reference.run(copies)
    changed = {
        name: float(np.abs(among_copies[name][0] - values[0]).max(initial=0))
        for name, values in expected.items()
        if not np.allclose(among_copies[name][0], values[0], _RELATIVE_NOISE, _NOISE)
    }
    if changed and _differs(reference.run(batch), expected):
        raise ParityError(
            "outputs of the torch model differ from run to run: it draws random numbers",
            remedy="pass what it draws as an input, or let `forward` draw nothing in eval mode",
        )
    if changed:
        listed = ", ".join(f"{name} by {change:.3g}" for name, change in changed.items())
        raise ParityError(
            "outputs of the torch model depend on the other samples of a batch: those of sample 0 "
            f"change if the others are replaced ({listed})",
            remedy="in `forward`, compute each sample by itself, such as by norms and averages "
            "over dimensions other than the first",
        )


def _differs(again: Batch, expected: Batch) -> bool:
    """Return True if a second run on the same batch gave other outputs."""
    return not all(
        np.allclose(again[name], values, _RELATIVE_NOISE, _NOISE)
        for name, values in expected.items()
    )


def check_finite(batches: Sequence[Batch]) -> None:
    """Check that outputs of the parent are finite, or -inf where a detector masks logits.

    Args:
        batches: outputs by name. Samples whose values are all -inf are not finite.

    Raises:
        NumericalError: an output has NaN, infinite values, or nothing but -inf.
    """
    for name in batches[0]:
        rows = [outputs[name].reshape(len(outputs[name]), -1) for outputs in batches]
        is_bad_N = np.concatenate(
            [
                ~(np.isfinite(values) | np.isneginf(values)).all(axis=1)
                | (values.shape[1] > 0) & np.isneginf(values).all(axis=1)
                for values in rows
            ]
        )
        if count := int(is_bad_N.sum()):
            raise NumericalError(
                f"output {name} of the torch model is NaN or infinite for {count} of "
                f"{len(is_bad_N)} samples"
            )


def without_masked(expected_NV: Array, actual_NV: Array) -> tuple[Array, Array]:
    """Return values with 0 where both are -inf, so that they are compared where they are not."""
    is_masked_NV = np.isneginf(expected_NV) & np.isneginf(actual_NV)
    return np.where(is_masked_NV, 0, expected_NV), np.where(is_masked_NV, 0, actual_NV)
