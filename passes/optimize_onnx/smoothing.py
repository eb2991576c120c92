"""Scaling of outlier channels before matrix products (after SmoothQuant, arXiv:2211.10438).

Shapes: I input channels, O outputs of all products that read a value, P positions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from onnxscript import ir
from torch import Tensor

from calibration.grids import activation_grid, activation_scale, weight_scales
from calibration.table import Range
from compressor.data.contract import Batch
from compressor.graphs.integer_regions import Product
from compressor.graphs.names import SMOOTHED_SUFFIX
from compressor.graphs.values import Array, add_initializer, constant_array, describe_output
from compressor.models.quantized.quantization import Grid, Target
from compressor.runtimes.onnxruntime.observation import observe_values
from passes.optimize_onnx.valid_positions import valid_values

_DEVIATIONS = (16.0, 8.0, 4.0, 2.0)
"""Candidates for the limit of a channel, in root mean squares of the whole value."""
_POSITIONS = 1024
"""Positions on which the candidates are compared."""
_LEAST_GAIN = 0.5
"""Squared error with a scale, relative to that without, from which it is not worth a node more."""


def smooth_values(
    graph: ir.Model,
    products: Sequence[Product],
    feeds: Sequence[Batch],
    target: Target,
    threads: int,
) -> dict[str, float]:
    """Scale outlier channels of what matrix products read down, and their weights up, in place.

    Unlike SmoothQuant, only channels whose largest magnitude exceeds a limit are scaled, down to
    it. The limit is the one among several, and none, with which the results of all products that
    read the value have the least error on samples, with operands and weights rounded.

    Returns:
        The name of each product that reads a scaled value, and the limit.
    """
    readers: dict[str, list[Product]] = {}
    for product in products:
        if product.node.op_type != "Conv":
            readers.setdefault(str(product.source.name), []).append(product)
    samples = _sample_positions(graph, list(readers), feeds, threads)
    limits: dict[str, float] = {}
    for name, group in readers.items():
        if name not in samples or not bool(samples[name].isfinite().all()):
            continue  # values that are not finite are reported with the ranges
        choice = _best_factors(samples[name], _weights(group), target)
        if choice is not None:
            limit, factors_I = choice
            _scale(graph, group, factors_I)
            limits |= {product.name: limit for product in group}
    return limits


def _sample_positions(
    graph: ir.Model, names: Sequence[str], feeds: Sequence[Batch], threads: int
) -> Mapping[str, Tensor]:
    """Return some positions of each value, float32 [P, I], evenly spaced over all samples."""
    rows: dict[str, list[Tensor]] = {}
    wanted = -(-_POSITIONS // len(feeds))

    def keep(name: str, values: Array, batch: Batch) -> None:
        values = valid_values(values, batch)
        x_PI = values.reshape(-1, values.shape[-1])
        chosen = np.unique(np.linspace(0, len(x_PI) - 1, min(wanted, len(x_PI))).astype(np.int64))
        if len(x_PI):
            rows.setdefault(name, []).append(torch.from_numpy(x_PI[chosen].astype(np.float32)))

    observe_values(graph, names, feeds, keep, threads)
    return {name: torch.cat(parts) for name, parts in rows.items()}


def _weights(group: Sequence[Product]) -> Tensor:
    """Return the weights of products that read one value, [I, O]."""
    parts = []
    for product in group:
        weight = constant_array(product.weight)
        assert weight is not None  # noqa: S101 - a product has a constant weight
        parts.append(weight if product.axis == 1 else weight.T)
    return torch.from_numpy(np.concatenate(parts, axis=1).astype(np.float32))


@torch.inference_mode()
def _best_factors(x_PI: Tensor, weight_IO: Tensor, target: Target) -> tuple[float, Array] | None:
    """Return limit and factors with the least error; None if that is without factors."""
    expected_PO = x_PI @ weight_IO
    best_error = _LEAST_GAIN * _error(x_PI, weight_IO, expected_PO, target)
    best: tuple[float, Array] | None = None
    largest_I = x_PI.abs().amax(dim=0)
    mean_square = float(x_PI.double().square().mean())
    for deviations in _DEVIATIONS:
        limit = deviations * mean_square**0.5
        if not limit > 0 or not bool((largest_I > limit).any()):
            continue
        factors_I = limit / largest_I.clamp(min=limit)
        error = _error(x_PI * factors_I, weight_IO / factors_I.unsqueeze(1), expected_PO, target)
        if error < best_error:
            best_error, best = error, (deviations, factors_I.numpy())
    return best


def _error(x_PI: Tensor, weight_IO: Tensor, expected_PO: Tensor, target: Target) -> float:
    """Return the squared error of a product with rounded operands."""
    low, high = float(x_PI.min()), float(x_PI.max())
    range_ = Range(values=x_PI.numel(), minimum=low, maximum=high, bound=max(-low, high, 0.0))
    symmetric = target == "tensorrt"
    grid = activation_grid(range_, 8, nonnegative=False, symmetric=symmetric)
    scale = activation_scale(range_, grid)
    rounded_PI = (x_PI / scale).round().clamp(grid.lowest, grid.highest) * scale
    weight_grid = Grid(bits=8)
    scales_O = weight_scales(weight_IO.T, weight_grid, "min-max")
    integers_IO = (weight_IO / scales_O).round().clamp(weight_grid.lowest, weight_grid.highest)
    result_PO = rounded_PI @ (integers_IO * scales_O)
    return float((result_PO - expected_PO).double().square().sum())


def _scale(graph: ir.Model, group: Sequence[Product], factors_I: Array) -> None:
    source = group[0].source
    factors = add_initializer(graph.graph, f"{source.name}.factors", factors_I)
    node = ir.node("Mul", [source, factors], name=f"{source.name}.smooth")
    name = f"{source.name}{SMOOTHED_SUFFIX}"
    result = describe_output(node, name, ir.DataType.FLOAT, source.shape)
    graph.graph.insert_before(group[0].node, node)
    for product in group:
        weight = constant_array(product.weight)
        assert weight is not None  # noqa: S101 - a product has a constant weight
        inverse = 1 / factors_I
        scaled = weight * (inverse[:, None] if product.axis == 1 else inverse[None, :])
        name = f"{product.weight.name}.smoothed"
        product.node.replace_input_with(0, result)
        product.node.replace_input_with(1, add_initializer(graph.graph, name, scaled))
