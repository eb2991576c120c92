"""One public model: its file, its inputs, and what its package does with its outputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from benchmarks.onnx_in.wheels import Wheels
from compressor.runtimes.onnxruntime.inference import session_options
from compressor.runtimes.onnxruntime.integer_kernels import (
    EMULATED_PRODUCTS,
    integer_products_saturate,
)

Array = np.ndarray[Any, Any]
Arrays = Mapping[str, Array]


@dataclass(frozen=True)
class Model:
    """A model of a wheel, with the way of its package to make inputs and to read outputs."""

    name: str
    field: str
    exporter: str
    wheel: str
    file: str
    samples: Callable[[Wheels, str, int], dict[str, Array]]
    """(wheels, "calibration" or "evaluation", count) to an array per input, samples first."""
    measure: str
    """Name of the measure of agreement."""
    agreement: Callable[[Sequence[Array], Sequence[Array]], float]
    """Outputs of the float model and of another for one sample to agreement in [0, 1]."""
    calibration: int = 64
    evaluation: int = 128

    def path(self, wheels: Wheels) -> Path:
        """Return the file of the float model."""
        return wheels.unpack(self.wheel) / self.file


def sample(arrays: Arrays, ranks: Mapping[str, int], index: int) -> dict[str, Array]:
    """Return the inputs of one sample.

    An array of one dimension more than the input holds one whole input per sample; any other
    holds one row of the input's batch dimension per sample.
    """
    return {
        name: np.asarray(array[index] if array.ndim > ranks[name] else array[index : index + 1])
        for name, array in arrays.items()
    }


def open_model(
    path: Path, threads: int = 2, *, exact: bool = False
) -> onnxruntime.InferenceSession:
    """Return a session of ONNX Runtime on the CPU.

    Args:
        path: the file.
        threads: threads of one operator.
        exact: compute QuantizeLinear and DequantizeLinear as they stand where the processor's
            integer products saturate. Operators that are integer in the file saturate all the same.
    """
    options = session_options(threads)
    if exact and integer_products_saturate():
        for key, value in EMULATED_PRODUCTS.items():
            options.add_session_config_entry(key, value)
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def input_ranks(session: onnxruntime.InferenceSession) -> dict[str, int]:
    """Return the number of dimensions of each input."""
    return {value.name: len(value.shape) for value in session.get_inputs()}


def feeds(session: onnxruntime.InferenceSession, arrays: Arrays) -> list[dict[str, Array]]:
    """Return the inputs of each sample."""
    ranks = input_ranks(session)
    return [sample(arrays, ranks, index) for index in range(len(next(iter(arrays.values()))))]


def same_class(output: int = 0, axis: int = -1) -> Callable[..., float]:
    """Return the share of equal classes."""

    def agreement(expected: Sequence[Array], actual: Sequence[Array]) -> float:
        pair = expected[output].argmax(axis), actual[output].argmax(axis)
        return float((pair[0] == pair[1]).mean())

    return agreement


def same_decisions(output: int, threshold: float) -> Callable[..., float]:
    """Return the share of equal decisions ``value > threshold``."""

    def agreement(expected: Sequence[Array], actual: Sequence[Array]) -> float:
        return float(((expected[output] > threshold) == (actual[output] > threshold)).mean())

    return agreement


def same_scores(expected: Sequence[Array], actual: Sequence[Array]) -> float:
    """Return the share of probabilities that differ by less than 0.01."""
    return float((np.abs(expected[0] - actual[0]) < 0.01).mean())


def overlap(output: int, threshold: float) -> Callable[..., float]:
    """Return intersection over union of ``value > threshold``; 1 where both are empty."""

    def agreement(expected: Sequence[Array], actual: Sequence[Array]) -> float:
        masks = expected[output] > threshold, actual[output] > threshold
        union = (masks[0] | masks[1]).sum()
        return float((masks[0] & masks[1]).sum() / union) if union else 1.0

    return agreement
