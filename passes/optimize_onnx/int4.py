"""INT4: weights of matrix products in blocks of 4 bits, rounded for the least error of the results.

Shapes: I inputs and O outputs of a product, N positions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import get_args

import numpy as np
import torch
from onnxscript import ir
from torch import Tensor
from torch.nn.functional import pad

from compressor.data.contract import Batch
from compressor.engine.contract import PassContext
from compressor.errors import RequirementError
from compressor.graphs.blocks import store_packed_weight
from compressor.graphs.gemms import split_gemm
from compressor.graphs.integer_regions import Product
from compressor.graphs.values import Array, constant_array, remove_unused
from compressor.models.quantized.packed_linear import PackedLinear
from compressor.models.quantized.weight_grid import WeightGrid
from compressor.runtimes.onnxruntime.observation import observe_values
from passes.common.weight_rounding.grids import ScaleFormat, round_to_nearest, search_grids
from passes.common.weight_rounding.hessian import Hessian, add_moments, mirror_upper
from passes.common.weight_rounding.rounding import pack_values, quantize_weights
from passes.optimize_onnx.config import BlockSize, OptimizeOnnxConfig
from passes.optimize_onnx.valid_positions import valid_values

_HALF_SCALES, _FLOAT_SCALES = ScaleFormat(torch.float16), ScaleFormat(torch.float32)
_STEPS = 15
"""Steps of a grid of 4 bits."""
_MOMENTS_AT_ONCE = 1 << 28
"""Values of second moments that are collected together: 1 GB."""


def store_int4(
    config: OptimizeOnnxConfig,
    graph: ir.Model,
    products: Sequence[Product],
    feeds: Sequence[Batch],
    context: PassContext,
) -> list[str]:
    """Store the weights of products in 4 bits, in place, and return the names of those left out.

    With samples, weights are rounded by GPTQ (Frantar et al. 2022, arXiv:2210.17323) on the second
    moments of what the float graph multiplies; without, to nearest.

    For ONNX Runtime the last block may be shorter, as MatMulNBits pads it.

    Raises:
        RequirementError: blocks divide the inputs of no product, and the target is TensorRT.
    """
    fitting = [product for product in products if _fits(config, product)]
    left_out = [product.name for product in products if product not in fitting]
    if not fitting:
        raise RequirementError(
            f"blocks of {config.block_size} weights divide the inputs of no product, as TensorRT "
            "requires",
            remedy=_remedy(products),
        )
    sharing: dict[tuple[str, int], list[Product]] = {}
    for product in fitting:
        sharing.setdefault((str(product.weight.name), product.axis), []).append(product)
    done = 0
    for group in _groups(list(sharing.values())):
        readers = [product for products in group for product in products]
        moments = _second_moments(graph, readers, feeds, context.threads) if feeds else {}
        packed = []
        for products in group:
            packed.append(_quantize(config, products, moments))
            done += 1
            context.progress("round weights", done, len(sharing), {})
        for products, weight in zip(group, packed, strict=True):
            nodes = [split_gemm(graph, product, config.target).node for product in products]
            store_packed_weight(graph, nodes, weight, 0)
    remove_unused(graph.graph)
    return left_out


def _fits(config: OptimizeOnnxConfig, product: Product) -> bool:
    return config.target == "onnxruntime" or not _inputs(product) % config.block_size


def _remedy(products: Sequence[Product]) -> str:
    """Return a block size that divides the inputs of a product, or other precisions."""
    sizes = [
        size
        for size in sorted(get_args(BlockSize), reverse=True)
        if any(not _inputs(product) % size for product in products)
    ]
    if sizes:
        return f"set `block_size: {sizes[0]}`"
    return "set `target: onnxruntime`, which takes blocks of any length, or `precision: fp16`"


def _inputs(product: Product) -> int:
    return int(_weight(product).shape[1 - product.axis])


def _weight(product: Product) -> Array:
    weight = constant_array(product.weight)
    assert weight is not None  # noqa: S101 - a product has a constant weight
    return weight


def _groups(sharing: Sequence[list[Product]]) -> list[list[list[Product]]]:
    """Return weights, each with its products, in groups whose second moments fit into memory."""
    groups: list[list[list[Product]]] = []
    held = _MOMENTS_AT_ONCE + 1
    for products in sharing:
        size = len(products) * _inputs(products[0]) ** 2
        if held + size > _MOMENTS_AT_ONCE:
            groups.append([])
            held = 0
        groups[-1].append(products)
        held += size
    return groups


@torch.inference_mode()
def _second_moments(
    graph: ir.Model, products: Sequence[Product], feeds: Sequence[Batch], threads: int
) -> dict[str, Tensor]:
    """Return XᵀX of each value that products multiply, by its name."""
    sizes = {str(product.source.name): _inputs(product) for product in products}
    moments = {name: torch.zeros(size, size) for name, size in sizes.items()}

    def add(name: str, values: Array, batch: Batch) -> None:
        values = np.ascontiguousarray(valid_values(values, batch))
        x_NI = torch.from_numpy(values).float().reshape(-1, sizes[name])
        add_moments(moments[name], x_NI)

    observe_values(graph, list(sizes), feeds, add, threads)
    return {name: mirror_upper(moments_II) for name, moments_II in moments.items()}


@torch.inference_mode()
def _quantize(
    config: OptimizeOnnxConfig, products: Sequence[Product], moments: Mapping[str, Tensor]
) -> PackedLinear:
    """Round the weight of products, by GPTQ where their second moments are known.

    The last group of each output may be shorter than the others.
    """
    product = products[0]
    weight = _weight(product)
    weight_IO = torch.from_numpy((weight.T if product.axis == 0 else weight).copy())
    inputs = len(weight_IO)
    missing = -inputs % config.block_size
    weight_IO = pad(weight_IO, (0, 0, 0, missing))  # zeros lie on every grid
    scales = _scale_format(weight_IO)
    grid = WeightGrid(bits=4, group_size=config.block_size, symmetric=config.target == "tensorrt")
    names = dict.fromkeys(str(each.source.name) for each in products)
    known = [moments[name] for name in names if name in moments]
    if known:
        moments_II = pad(torch.stack(known).sum(dim=0), (0, missing, 0, missing))
        hessian = Hessian.from_moments(moments_II)
        packed = quantize_weights(weight_IO, weight_IO, hessian, grid, scales, gptq=True)
    else:
        grids = search_grids(weight_IO, torch.ones(len(weight_IO)), grid, scales)
        packed = pack_values(round_to_nearest(weight_IO, grids), grids)
    return replace(packed, integers_OI=packed.integers_OI[:, :inputs])


def _scale_format(weight_IO: Tensor) -> ScaleFormat:
    """Return scales in FP16, or in FP32 where FP16 may not hold those of an output's weights."""
    largest_O = 2 * weight_IO.abs().amax(dim=0) / _STEPS
    half = torch.finfo(torch.float16)
    # Half of the range is the narrowest grid, and FP16 loses digits below its smallest normal.
    is_small_O = (largest_O > 0) & (largest_O < 4 * half.smallest_normal)
    fits = float(largest_O.max()) <= half.max and not bool(is_small_O.any())
    return _HALF_SCALES if fits else _FLOAT_SCALES
