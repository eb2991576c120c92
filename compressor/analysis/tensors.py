"""The weights of two models, tensor by tensor: what they are called, their shapes, and how far apart their values are."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict

from compressor.artifacts.kinds import OF_FAMILIES, Kind
from compressor.errors import ModelError

Array = np.ndarray[Any, Any]
_WRAPPER = "module."  # what an exporter puts before a name
_INSIDE = ".layer."  # what a layer with integers puts into one
_INTEGERS = ".integers"
_TURNED = ".T"  # behind it: stored as ONNX multiplies
_HALF = ".half"  # behind a name: in FP16


class TensorDifference(BaseModel):
    """One tensor of both models; a shape is None where one lacks it."""

    model_config = ConfigDict(frozen=True)

    name: str
    a: tuple[int, ...] | None
    b: tuple[int, ...] | None
    snr_db: float | None
    """Signal-to-noise ratio of b against a, 10 · log10(Σa² / Σ(a−b)²); None where shapes differ or nothing does."""
    equal: bool


def tensor_differences(a: tuple[Kind, Path], b: tuple[Kind, Path]) -> tuple[TensorDifference, ...]:
    """Every weight of two models, those that differ most first.

    Of models in safetensors one tensor at a time is in memory; ONNX files and packed checkpoints are read whole.

    Args:
        a: kind and model folder; AWQ weights and INT8 weights of an ONNX file are compared as the floats that they stand for.
        b: the other's.
    """
    left, right = (_tensors(*one) for one in (a, b))
    found = [
        _pair(name, left.get(name), right.get(name)) for name in dict.fromkeys((*left, *right))
    ]
    return tuple(
        sorted(
            found,
            key=lambda one: (one.equal, math.inf if one.snr_db is None else one.snr_db, one.name),
        )
    )


def relative_error(of: Array, against: Array) -> float:
    """Σ(of − against)² / Σ against²: 0 for equals, infinite against zeros."""
    wanted = against.astype(np.float64)
    noise = float(np.square(of.astype(np.float64) - wanted).sum())
    signal = float(np.square(wanted).sum())
    return 0.0 if noise == 0 else noise / signal if signal else math.inf


def snr_db(error: float) -> float | None:
    """A relative error as a signal-to-noise ratio; None for none, which is infinitely many decibels."""
    return -10 * math.log10(error) if 0 < error < math.inf else None


def _pair(
    name: str, a: Callable[[], Array] | None, b: Callable[[], Array] | None
) -> TensorDifference:
    left, right = (one() if one is not None else None for one in (a, b))
    shapes = [None if one is None else tuple(one.shape) for one in (left, right)]
    error = None
    if left is not None and right is not None:
        if right.ndim == 2 and left.shape == right.shape[::-1] != right.shape:
            right = right.T  # as ONNX multiplies
        if left.shape == right.shape:
            error = relative_error(right, left)
    ratio = None if error is None else snr_db(error)
    return TensorDifference(name=name, a=shapes[0], b=shapes[1], snr_db=ratio, equal=error == 0)


def _tensors(kind: Kind, model: Path) -> Mapping[str, Callable[[], Array]]:
    if kind is Kind.AWQ:
        from compressor.models.quantized.packed_checkpoint import dequantized

        tree = json.loads((model / "config.json").read_bytes())
        return {name: partial(_array, value) for name, value in dequantized(model, tree)}
    if kind in OF_FAMILIES:
        return _stored(model)
    if kind in {Kind.ONNX, Kind.ENGINE}:
        return _initializers(model)
    raise ModelError(f"a model of kind {kind.value!r} has no tensors to compare: {model}")


def _stored(model: Path) -> dict[str, Callable[[], Array]]:
    import safetensors

    found: dict[str, Callable[[], Array]] = {}
    for file in sorted(model.glob("*.safetensors")):
        with safetensors.safe_open(file, framework="pt") as opened:
            found |= {_plain(name): partial(_read, file, name) for name in opened.keys()}  # noqa: SIM118 - no mapping
    return found


def _read(file: Path, name: str) -> Array:
    import safetensors

    with safetensors.safe_open(file, framework="pt") as opened:
        return _array(opened.get_tensor(name))


def _array(tensor: Any) -> Array:
    array: Array = (tensor.float() if tensor.is_floating_point() else tensor).numpy()
    return array


def _initializers(model: Path) -> dict[str, Callable[[], Array]]:
    import onnx

    from compressor.graphs.files import MODEL, read_graph

    read_graph(model)
    graph = onnx.load(str(model / MODEL)).graph
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    scales = {node.input[0]: node for node in graph.node if node.op_type == "DequantizeLinear"}
    found: dict[str, Callable[[], Array]] = {}
    for name, tensor in tensors.items():
        base, integers, turned = name.removesuffix(_HALF).partition(_INTEGERS)
        if not name.startswith(_WRAPPER) or not tensor.dims:
            continue
        if integers and name in scales:
            found[_plain(base)] = partial(_dequantized, scales[name], tensors, turned == _TURNED)
        else:
            found[_plain(base)] = partial(onnx.numpy_helper.to_array, tensor)
    return found


def _dequantized(node: Any, tensors: Mapping[str, Any], turned: bool) -> Array:
    """What a DequantizeLinear of constants makes: one scale, one for each index of an axis, or one for each block along it."""
    import onnx

    known = [
        tensors[name] for name in node.input if name in tensors
    ]  # a zero-point of zeros may be no initializer
    values, scales, *zeros = (onnx.numpy_helper.to_array(one).astype(np.float32) for one in known)
    told = {one.name: one.i for one in node.attribute}
    axis, size = told.get("axis", 1), told.get("block_size", 0)

    def spread(some: Array) -> Array:
        if size:
            return np.repeat(some, size, axis)
        return some.reshape(
            [-1 if index == axis else 1 for index in range(values.ndim)] if some.ndim else []
        )

    product: Array = (values - (spread(zeros[0]) if zeros else 0)) * spread(scales)
    return product.T if turned else product


def _plain(name: str) -> str:
    """The name that a tensor has in the model's own float form."""
    return name.removeprefix(_WRAPPER).replace(_INSIDE, ".")
