"""Random inputs of a model, and the sizes that it runs with, which are found by trying."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from compressor.data.contract import Batch
from compressor.errors import CallTimeoutError, DataError, ModelError, PassError
from compressor.models.capabilities.signature import REST, InputSpec
from compressor.runtimes.call_limit import limit_calls
from compressor.runtimes.formats import Format
from compressor.runtimes.session import Array, Session

SIZES = (16, 32, 64, 128, 224, 320, 640, 8, 4, 1)
"""Candidates for all dimensions that vary, except the first of an input: texts of 16 tokens, and
pictures in the sizes of the usual networks."""
_SEED = 0
_TRIAL_SECONDS = 60.0
"""Longest call of a trial for a first pipeline, which states no `evaluate.call_timeout` yet."""


def working_inputs(session: Session) -> Batch | None:
    """Return random inputs on which a model runs and gives outputs that are not empty.

    Returns:
        One sample for each input; None where the model runs with none of the sizes that are tried.

    Raises:
        CallTimeoutError: a call did not end in time.
    """
    inputs = session.inputs
    batch_axes = {spec.shape[0] for spec in inputs if spec.shape}
    varies = any(_is_open(size, batch_axes) for spec in inputs for size in spec.shape)
    for size in SIZES if varies else SIZES[:1]:
        shapes = _shapes(inputs, size)
        if shapes is not None and runs(session, shapes):
            return random_inputs(inputs, shapes)
    return None


def runs(session: Session, shapes: Mapping[str, Sequence[int]]) -> bool:
    """Return True if a model runs on inputs of these shapes, with outputs that are not empty.

    Raises:
        CallTimeoutError: the call did not end in time.
    """
    try:
        outputs = session.run(random_inputs(session.inputs, shapes))
    except CallTimeoutError:
        raise
    except (DataError, PassError):
        return False
    return all(np.size(values) for values in outputs.values() if isinstance(values, np.ndarray))


def random_inputs(inputs: Sequence[InputSpec], shapes: Mapping[str, Sequence[int]]) -> Batch:
    """Return random inputs of these shapes, the same each time.

    Floats are drawn from the standard normal distribution, and integers are 1: as a token, a class
    or an element of a mask, every model has it.
    """
    generator = np.random.default_rng(_SEED)
    return {spec.name: _draw(spec, shapes[spec.name], generator) for spec in inputs}


def _draw(spec: InputSpec, shape: Sequence[int], generator: np.random.Generator) -> Array:
    dtype = np.dtype(spec.dtype)
    values = generator.standard_normal(tuple(shape)) if dtype.kind == "f" else np.ones(shape)
    return values.astype(dtype)


def _shapes(inputs: Sequence[InputSpec], size: int) -> dict[str, tuple[int, ...]] | None:
    """Return shapes in which what varies has a size, but for batches of 1; None if unknown."""
    if any(REST in spec.shape for spec in inputs):
        return None  # the number of dimensions is not known
    batch_axes = {spec.shape[0] for spec in inputs if spec.shape}
    return {
        spec.name: tuple(
            each if isinstance(each, int) else (size if _is_open(each, batch_axes) else 1)
            for each in spec.shape
        )
        for spec in inputs
    }


def _is_open(size: int | str, batch_axes: set[int | str]) -> bool:
    return isinstance(size, str) and size not in batch_axes


@dataclass(slots=True)
class SizeTrial:
    """Trial of a model with a size for all dimensions that vary, but for batches.

    It opens the model when it is called first, and holds it until it is closed. A model whose
    call does not end in time is not tried again: it runs with no size.
    """

    format: Format
    path: Path
    threads: int
    _session: Session | None = None
    _results: dict[int, bool] = field(default_factory=dict)
    _ends: bool = True

    def __call__(self, size: int) -> bool:
        """Return True if the model runs; False if it does not, or cannot be opened."""
        if size not in self._results:
            try:
                self._results[size] = self._ends and self._runs(size)
            except CallTimeoutError:
                self._results[size] = self._ends = False
            except (ModelError, PassError):
                self._results[size] = False
        return self._results[size]

    def _runs(self, size: int) -> bool:
        if self._session is None:
            self._session = self.format.open_session(self.path, threads=self.threads)
        shapes = _shapes(self._session.inputs, size)
        with limit_calls(self.path, _TRIAL_SECONDS):
            return shapes is not None and runs(self._session, shapes)

    def __enter__(self) -> Self:
        """Return the trial."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close the model."""
        if self._session is not None:
            self._session.close()
            self._session = None
