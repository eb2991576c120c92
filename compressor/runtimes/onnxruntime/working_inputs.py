"""Random inputs on which a model runs, of which the sizes that vary are found by trying."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from compressor.data.contract import Batch
from compressor.errors import DataError, PassError
from compressor.models.capabilities.signature import REST, InputSpec
from compressor.runtimes.session import Array, Session

_SIZES = (16, 32, 64, 128, 224, 320, 640, 8, 4, 1)
"""Candidates for all dimensions that vary, except the first of an input: texts of 16 tokens, and
pictures in the sizes of the usual networks."""
_SEED = 0


def working_inputs(session: Session) -> Batch | None:
    """Return random inputs on which a model runs and gives outputs that are not empty.

    Floats are drawn from the standard normal distribution, and integers are 1: as a token, a class
    or an element of a mask, every model has it.

    Returns:
        One sample for each input; None where the model runs with none of the sizes that are tried.
    """
    for feeds in _candidates(session.inputs):
        try:
            outputs = session.run(feeds)
        except (DataError, PassError):
            continue
        if all(np.size(values) for values in outputs.values() if isinstance(values, np.ndarray)):
            return feeds
    return None


def _candidates(inputs: Sequence[InputSpec]) -> Iterator[Batch]:
    if any(REST in spec.shape for spec in inputs):
        return  # the number of dimensions is not known
    batch_axes = {spec.shape[0] for spec in inputs if spec.shape}
    varies = any(_is_open(size, batch_axes) for spec in inputs for size in spec.shape)
    for size in _SIZES if varies else _SIZES[:1]:
        generator = np.random.default_rng(_SEED)
        yield {spec.name: _draw(spec, _shape(spec, size, batch_axes), generator) for spec in inputs}


def _is_open(size: int | str, batch_axes: set[int | str]) -> bool:
    return isinstance(size, str) and size not in batch_axes


def _shape(spec: InputSpec, size: int, batch_axes: set[int | str]) -> tuple[int, ...]:
    return tuple(
        each if isinstance(each, int) else (size if _is_open(each, batch_axes) else 1)
        for each in spec.shape
    )


def _draw(spec: InputSpec, shape: tuple[int, ...], generator: np.random.Generator) -> Array:
    dtype = np.dtype(spec.dtype)
    values = generator.standard_normal(shape) if dtype.kind == "f" else np.ones(shape)
    return values.astype(dtype)
