"""Inference sessions: one interface for every runtime, NumPy arrays in and out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import TracebackType
from typing import Any, Self

import numpy as np

from compressor.data.contract import Batch
from compressor.errors import DataError
from compressor.models.capabilities.signature import REST, InputSpec, OutputSpec, describe_shape

Array = np.ndarray[Any, Any]


class Session(ABC):
    """An open model.

    Attributes:
        runtime: name and version of the runtime, such as ``onnxruntime 1.32.0``.
        inputs: the inputs in the model's order.
        output_names: the outputs in the model's order.
        outputs: shapes of the outputs, where the model declares them.
    """

    runtime: str
    inputs: tuple[InputSpec, ...]
    output_names: tuple[str, ...]
    outputs: tuple[OutputSpec, ...] = ()

    @property
    def input_names(self) -> tuple[str, ...]:
        """Names of the inputs in the model's order."""
        return tuple(spec.name for spec in self.inputs)

    def run(self, batch: Mapping[str, Array]) -> Batch:
        """Return the outputs for a batch.

        Arrays that the model has no input for are ignored; others are cast where the cast is exact.

        Raises:
            DataError: arrays are missing or have other shapes or dtypes than the model's inputs;
                the message names all of them.
        """
        return self.compute(match_inputs(batch, self.inputs))

    @abstractmethod
    def compute(self, feeds: Batch) -> Batch:
        """Return the outputs for arrays that ``match_inputs`` has checked.

        Latency is measured around this call alone.
        """

    def sample_macs(self, batch: Mapping[str, Array]) -> int | None:  # noqa: ARG002
        """Return the multiply-accumulates of a batch of one sample.

        None where they do not depend on its sizes, or where the format counts them.
        """
        return None

    def close(self) -> None:
        """Release the model."""
        return

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def match_inputs(batch: Mapping[str, Array], inputs: Sequence[InputSpec]) -> Batch:
    """Return the arrays of a batch that a model takes, contiguous and with the model's dtypes.

    An input without a batch axis is fed with the sample itself, of a batch of one.

    Raises:
        DataError: names every array that is missing or does not fit.
    """
    feeds: Batch = {}
    problems = input_problems(batch, inputs)
    for spec in inputs:
        if spec.name in batch:
            array = _as_input(spec, batch[spec.name])
            converted = _cast(array, np.dtype(spec.dtype))
            if converted is None:
                problems.append(
                    f"{spec.name}: its values are {array.dtype} and do not fit into {spec.dtype}"
                )
            else:
                feeds[spec.name] = converted
    if problems:
        raise DataError(
            "the data does not fit the model's inputs:\n"
            + "\n".join(f"    {problem}" for problem in problems),
            remedy="name a data set that was made for this model",
        )
    return feeds


def input_problems(batch: Mapping[str, Array], inputs: Sequence[InputSpec]) -> list[str]:
    """Return a line for each array of a batch that is missing, misshapen or out of range."""
    problems: list[str] = []
    sizes: dict[str, tuple[int, str]] = {}
    for spec in inputs:
        if spec.name in batch:
            array = _as_input(spec, batch[spec.name])
            found = (_shape_problem(spec, array, sizes), _range_problem(spec, array))
            problems += [f"{spec.name}: {problem}" for problem in found if problem]
        elif not spec.optional:
            present = ", ".join(sorted(batch)) or "no arrays"
            problems.append(f"{spec.name}: missing; the data has {present}")
    return problems


def sample_specs(batch: Mapping[str, Array], inputs: Sequence[InputSpec]) -> tuple[InputSpec, ...]:
    """Return inputs of which a fixed batch axis counts as variable, as calls are filled later."""
    return tuple(
        replace(spec, shape=("batch", *spec.shape[1:]))
        if _fixes_samples(spec) and spec.name in batch and batch[spec.name].ndim == len(spec.shape)
        else spec
        for spec in inputs
    )


def _fixes_samples(spec: InputSpec) -> bool:
    size = spec.shape[0] if spec.shape else None
    return isinstance(size, int) and size > 1


def is_whole_sample(spec: InputSpec, shape: Sequence[int | None]) -> bool:
    """Return True if an input has no batch axis: it has one axis fewer than a batch of samples.

    Args:
        spec: the input; one whose first dimension is named ``batch`` has that axis.
        shape: shape of a batch.
    """
    is_open = REST in spec.shape or spec.shape[:1] == ("batch",)
    return not is_open and len(shape) == len(spec.shape) + 1


def _as_input(spec: InputSpec, array: Array) -> Array:
    """Return the only sample of a batch where the input has no batch axis, else the batch."""
    return np.asarray(array[0]) if is_whole_sample(spec, array.shape) and len(array) == 1 else array


def _range_problem(spec: InputSpec, array: Array) -> str | None:
    """Return what is wrong with the values of an input that indexes a table."""
    if spec.below is None or not array.size or array.dtype.kind not in "biuf":
        return None
    if array.max() >= spec.below:
        return f"has the value {array.max()}; the model takes values below {spec.below}"
    if array.min() < 0:
        return f"has the value {array.min()}; the model takes values from 0 to {spec.below - 1}"
    return None


def _shape_problem(spec: InputSpec, array: Array, sizes: dict[str, tuple[int, str]]) -> str | None:
    """Return what is wrong with a shape; ``sizes`` collects variable dimensions."""
    expected = describe_shape(spec.shape)
    is_open = spec.shape[-1:] == (REST,)
    known = spec.shape[:-1] if is_open else spec.shape
    if array.ndim < len(known) or (array.ndim > len(known) and not is_open):
        return f"shape {list(array.shape)}, expected {expected}"
    for size, dimension in zip(array.shape, known, strict=False):
        if isinstance(dimension, int):
            if size != dimension:
                return f"shape {list(array.shape)}, expected {expected}"
            continue
        if spec.longest is not None and dimension != "batch" and size > spec.longest:
            return f"{dimension} is {size}; the model takes at most {spec.longest}"
        first_size, first_input = sizes.setdefault(dimension, (size, spec.name))
        if size != first_size:
            return f"{dimension} is {size}, but {first_size} in {first_input}"
    return None


def _cast(array: Array, dtype: np.dtype[Any]) -> Array | None:
    """Return the array as ``dtype``, or None where a value would change.

    Only values for an input in float16 are rounded, as long as they stay finite.
    """
    if array.dtype == dtype:
        return np.asarray(array, order="C")
    if array.dtype.kind not in "biuf":
        return None
    with np.errstate(invalid="ignore", over="ignore"):
        converted = array.astype(dtype)
        if dtype == np.float16 and array.dtype.kind == "f":
            unchanged = np.array_equal(np.isfinite(converted), np.isfinite(array))
            return np.asarray(converted, order="C") if unchanged else None
        unchanged = np.array_equal(
            converted.astype(array.dtype), array, equal_nan=np.issubdtype(array.dtype, np.floating)
        )
        unchanged = unchanged and np.array_equal(converted < 0, array < 0)  # uint64 wraps in int64
    return np.asarray(converted, order="C") if unchanged else None
