"""INT8: ranges of values, grids, and the graph with rounded values and stored integers.

Shapes: O outputs of a product, K weights of an output.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from onnxscript import ir

from calibration.capture import TensorObservers
from calibration.grids import activation_grid, activation_scale, observed_range, weight_scales
from calibration.observers import create_observer
from calibration.table import Range
from compressor.data.contract import Batch
from compressor.engine.contract import PassContext
from compressor.errors import NumericalError
from compressor.graphs.activation_limits import activation_limits
from compressor.graphs.embeddings import store_integer_tables
from compressor.graphs.gemms import split_gemm
from compressor.graphs.integer_gates import gate_start, store_integer_gates
from compressor.graphs.integer_regions import (
    Product,
    RoundedValue,
    float_products,
    rounded_values,
)
from compressor.graphs.qdq import store_integer_weights
from compressor.graphs.rounding_nodes import round_value, round_weight
from compressor.graphs.values import Array, constant_array
from compressor.models.quantized.quantization import Bits, Grid
from compressor.runtimes.onnxruntime.observation import observe_values
from passes.optimize_onnx.bias_correction import correct_biases
from passes.optimize_onnx.config import OptimizeOnnxConfig
from passes.optimize_onnx.valid_positions import valid_values
from passes.optimize_onnx.weight_layers import store_layers

_BITS: Bits = 8


@dataclass(frozen=True, slots=True)
class IntegerGraph:
    """A graph that multiplies integers."""

    model: ir.Model
    corrected_biases: int
    tables: list[str]
    """Embedding tables that are stored as integers."""


@dataclass(frozen=True, slots=True)
class IntegerGraphs:
    """Builder of graphs in which some products multiply integers."""

    config: OptimizeOnnxConfig
    graph: ir.Model
    """The float graph; it is not changed."""
    ranges: Mapping[str, Range]
    """Range of each value that may be rounded; empty with `weight_only`."""
    feeds: Sequence[Batch]
    """Samples for the correction of biases; empty if there are none."""
    threads: int

    def build(self, names: Sequence[str]) -> IntegerGraph:
        """Return a graph in which the named layers are integer, and the tables that may be.

        A product whose value no sample reaches, or is constant, is left in float by the caller.
        """
        model = self.graph.clone()
        wanted = set(names)
        products = [
            split_gemm(model, product, self.config.target)
            for product in float_products(model)
            if product.name in wanted
        ]
        values: tuple[RoundedValue, ...] = ()
        if self.config.rounds_values:
            values = rounded_values(products, self.config.target)
        starts = [self._gate_start(rounded) for rounded in values]
        for rounded, start in zip(values, starts, strict=True):
            range_ = self.ranges[str(rounded.grid_of.name)]
            scale, zero = self._grid(range_) if start is None else _grid_from(start, range_)
            round_value(model, rounded, scale, zero)
        for product in products:
            round_weight(model, product, _weight_scales(product))
        store_integer_gates(model)
        store_layers(model, wanted, _row_scales)
        corrected = 0
        if self.config.bias_correction and self.feeds:
            corrected = correct_biases(model, products, self.feeds, self.threads)
        store_integer_weights(model, self.config.target, _BITS)
        tables = []
        if self.config.stores_tables:
            tables = store_integer_tables(model, self.config.ignore)
        return IntegerGraph(model, corrected, tables)

    def _gate_start(self, rounded: RoundedValue) -> float | None:
        """Return the value at which the gates that read a value are 0, if nothing below counts."""
        range_ = self.ranges[str(rounded.grid_of.name)]
        value = rounded.value
        start = gate_start(value) if self.config.target == "onnxruntime" else None
        if start is None or rounded.grid_of is not value or not range_.minimum < 0 < range_.maximum:
            return None
        return start if activation_limits(value)[0] == start else None

    def _grid(self, range_: Range) -> tuple[Array, Array]:
        """Return scale and zero-point of an activation."""
        symmetric = self.config.target == "tensorrt"
        grid = activation_grid(
            range_, _BITS, nonnegative=not symmetric and range_.minimum >= 0, symmetric=symmetric
        )
        zero = np.zeros((), np.int8) if symmetric else np.array(-grid.lowest, np.uint8)
        return activation_scale(range_, grid).numpy(), zero


def _grid_from(start: float, range_: Range) -> tuple[Array, Array]:
    """Return scale and zero-point of a grid that begins exactly at a value below 0."""
    end = min(range_.maximum, range_.bound)
    zero = max(1, int(-start / (end - start) * ((1 << _BITS) - 1)))
    return np.array(-start / zero, np.float32), np.array(zero, np.uint8)


def _weight_scales(product: Product) -> Array:
    weight = constant_array(product.weight)
    assert weight is not None  # noqa: S101 - a product has a constant weight
    return _row_scales(np.moveaxis(weight, product.axis, 0))


def _row_scales(weight: Array) -> Array:
    """Return a scale for each row of a weight [O, …]."""
    rows = torch.from_numpy(weight.copy())
    scales_O: Array = weight_scales(rows, Grid(bits=_BITS), "mse").numpy()
    return scales_O


def observe_ranges(
    config: OptimizeOnnxConfig,
    graph: ir.Model,
    products: Sequence[Product],
    feeds: Sequence[Batch],
    context: PassContext,
) -> dict[str, Range]:
    """Return the range of each value that is rounded where all products are integer.

    Raises:
        NumericalError: values are NaN or infinite; the message names each.
    """
    calibration = config.calibration
    assert calibration is not None  # noqa: S101 - INT8 requires it
    options: dict[str, Any] = {}
    if calibration.observer == "percentile":
        options["percentile"] = calibration.percentile
    observers = TensorObservers(lambda: create_observer(calibration.observer, **options))
    # Those that are moved are observed too: they have grids of their own where fewer are integer.
    rounded = rounded_values(products, config.target)
    names = [str(each.value.name) for each in rounded]
    limits = {str(each.value.name): activation_limits(each.value) for each in rounded}
    done = 0

    def observe(name: str, values: Array, batch: Batch) -> None:
        nonlocal done
        reached = np.clip(valid_values(values, batch), *limits[name])
        observers.observe(name, torch.from_numpy(np.ascontiguousarray(reached)))
        done += 1
        context.progress("ranges", done, len(names) * len(feeds), {})

    observe_values(graph, names, feeds, observe, context.threads)
    if observers.not_finite:
        lines = "\n".join(f"    {name}: {error}" for name, error in observers.not_finite.items())
        raise NumericalError(
            f"values are not finite on samples of {calibration.data!r}:\n{lines}",
            remedy="set `calibration.data` to samples that were made for this model",
        )
    return {
        name: observed_range(observer, _BITS)
        for name, observer in observers.observers.items()
        if observer.count
    }
