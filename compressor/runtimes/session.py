"""Any artifact as one callable: NumPy arrays in, NumPy arrays out, whatever computes in between."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from compressor.artifacts.kinds import OF_FAMILIES, Kind
from compressor.data.contract import Batch
from compressor.errors import DataError, UsageError
from compressor.models.contract import InputSpec


class Session(ABC):
    """An open model.

    Attributes:
        runtime: what computes, and its version, as ``onnxruntime 1.32.0``.
        inputs: the inputs in the model's order.
        output_names: the outputs in the model's order.
    """

    runtime: str
    inputs: tuple[InputSpec, ...]
    output_names: tuple[str, ...]

    @property
    def input_names(self) -> tuple[str, ...]:
        """The inputs' names in the model's order."""
        return tuple(spec.name for spec in self.inputs)

    def run(self, batch: Mapping[str, np.ndarray[Any, Any]]) -> Batch:
        """The outputs for a batch; arrays that the model has no input for are left out, others cast where that is exact.

        Raises:
            DataError: arrays are missing, or have other shapes or dtypes than the model's inputs: all are named.
        """
        return self.compute(fitted(batch, self.inputs))

    @abstractmethod
    def compute(self, feeds: Batch) -> Batch:
        """The outputs for feeds that ``fitted`` has checked; this alone is what latency measures."""

    def close(self) -> None:
        """Let go of the model."""
        return

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def open_session(kind: Kind, model_folder: Path, *, threads: int, device: str = "cpu") -> Session:
    """Open the model of an artifact with the runtime of its kind.

    Raises:
        ModelError: the folder does not hold a model that can be opened.
        UsageError: nothing here runs this kind yet.
        DamagedArtifactError: an engine is not the one that its engine.json tells of.
        GpuError: an engine was not built for a GPU of this machine.
    """
    if kind in OF_FAMILIES:
        from compressor.runtimes.torch.session import TorchSession

        return TorchSession(model_folder, threads, device)
    if kind is Kind.ONNX:
        from compressor.runtimes.onnxruntime.session import OnnxSession

        return OnnxSession(model_folder, threads, device)
    if kind is Kind.ENGINE:
        from compressor.runtimes.tensorrt.session import EngineSession

        return EngineSession(model_folder)
    raise UsageError(
        f"there is no runtime for artifacts of kind {kind.value!r} yet: {model_folder}",
        remedy="measure its torch or onnx parent instead",
    )


def fitted(batch: Mapping[str, np.ndarray[Any, Any]], inputs: Sequence[InputSpec]) -> Batch:
    """The arrays of a batch that a model takes, contiguous and with its dtypes.

    Raises:
        DataError: names every array that is missing or does not fit.
    """
    feeds: Batch = {}
    problems = []
    named: dict[str, tuple[int, str]] = {}
    for spec in inputs:
        if spec.name not in batch:
            if spec.optional:
                continue
            problems.append(
                f"{spec.name}: missing; the data has {', '.join(sorted(batch)) or 'nothing'}"
            )
            continue
        array = batch[spec.name]
        if complaint := _misshape(spec, array, named):
            problems.append(f"{spec.name}: {complaint}")
        if spec.below is not None and array.size and array.max() >= spec.below:
            problems.append(
                f"{spec.name}: has the value {array.max()}; the model knows those below {spec.below}"
            )
        converted = _exactly(array, np.dtype(spec.dtype))
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


def _misshape(
    spec: InputSpec, array: np.ndarray[Any, Any], named: dict[str, tuple[int, str]]
) -> str | None:
    """What is wrong with a shape; ``named`` remembers the size and place of each dimension that varies."""
    wanted = f"[{', '.join(map(str, spec.shape))}]"
    if array.ndim != len(spec.shape):
        return f"shape {list(array.shape)}, expected {wanted}"
    for size, dimension in zip(array.shape, spec.shape, strict=True):
        if isinstance(dimension, int) and size != dimension:
            return f"shape {list(array.shape)}, expected {wanted}"
        if isinstance(dimension, str):
            if spec.longest is not None and dimension != "batch" and size > spec.longest:
                return f"{dimension} is {size}, and the model takes {spec.longest} at most"
            first, where = named.setdefault(dimension, (size, spec.name))
            if size != first:
                return f"{dimension} is {size}, but {first} in {where}"
    return None


def _exactly(array: np.ndarray[Any, Any], dtype: np.dtype[Any]) -> np.ndarray[Any, Any] | None:
    """The array as ``dtype``, or None where a value would change."""
    if array.dtype == dtype:
        return np.ascontiguousarray(array)
    if array.dtype.kind not in "biuf":
        return None
    with np.errstate(invalid="ignore", over="ignore"):
        converted = array.astype(dtype)
        same = np.array_equal(
            converted.astype(array.dtype), array, equal_nan=array.dtype.kind == "f"
        )
        same = same and np.array_equal(converted < 0, array < 0)  # uint64 wraps into int64 and back
    return np.ascontiguousarray(converted) if same else None
