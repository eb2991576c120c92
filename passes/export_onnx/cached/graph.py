"""Graph of a traced decoder, with the inputs and outputs of ``graphs/decoder/interface.py``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor, nn

from compressor.graphs.decoder.cache_layout import KvCacheLayout
from compressor.graphs.decoder.interface import (
    ATTENTION_MASK,
    INPUT_IDS,
    LOGITS,
    LOGITS_TO_KEEP,
    PAST_PREFIX,
)
from compressor.models.capabilities.cached_generation import PAST, CachedTensor
from passes.export_onnx.cached.decoder import CachedDecoder
from passes.export_onnx.class_tracing import trace_class
from passes.export_onnx.tracing import GraphInterface

_KEPT_POSITIONS = "kept_positions"
_BATCH, _TOKENS, _PAST_TOKENS = 2, 3, 5
"""Sizes of the traced call: all different, and none 1, which tracing takes for a constant."""


@dataclass(frozen=True, slots=True)
class ExtraInput:
    """A further input of a traced decoder, such as the embeddings of images."""

    name: str
    sample: Tensor
    """An example; only its shape and dtype matter."""
    dynamic: Mapping[int, str]
    """Variable dimensions: axis to name. ``batch``, ``tokens`` and ``past`` are those of the
    other inputs."""


def trace_decoder(
    decoder: CachedDecoder, opset: int, extra: Sequence[ExtraInput] = (), *, single: bool = False
) -> ir.Model:
    """Trace a decoder with variable sizes of batch, tokens and cache.

    Args:
        decoder: the module.
        opset: the ONNX operator set version.
        extra: its ``extra_inputs``.
        single: True for a graph that takes one token per call, as classes need whose recurrent
            layers loop over the tokens.

    Raises:
        PassError: torch cannot trace the class.
    """
    names = [PAST_PREFIX + tensor.name for tensor in decoder.tensors]
    count = 1 if single else _TOKENS
    tokens = torch.arange(_BATCH * count).reshape(_BATCH, count) + 4
    mask = torch.ones(_BATCH, _PAST_TOKENS + count, dtype=torch.int64)
    past = [_sample(tensor) for tensor in decoder.tensors]
    inputs = [INPUT_IDS, ATTENTION_MASK, _KEPT_POSITIONS, *(value.name for value in extra), *names]
    interface = GraphInterface(
        inputs=inputs,
        outputs=[LOGITS, *map(KvCacheLayout.present_name, names)],
        dynamic=(
            (
                {0: "batch"} if single else {0: "batch", 1: "tokens"},
                {0: "batch", 1: "total"},
                {} if single else {0: "kept"},
                *(dict(value.dynamic) for value in extra),
                *(_variable_sizes(tensor) for tensor in decoder.tensors),
            ),
        ),
        opset=opset,
    )
    rest = (*(value.sample for value in extra), *past)
    arguments = (tokens, mask, torch.arange(count), *rest)
    graph = trace_class(_Positional(decoder), arguments, interface, needs_corrections=True)
    _make_kept_positions_optional(graph)
    _name_dimensions(graph, decoder.tensors)
    return graph


class _Positional(nn.Module):
    """A decoder whose arguments are all alike for torch.export."""

    def __init__(self, decoder: CachedDecoder) -> None:
        super().__init__()
        self.decoder = decoder

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Return the logits and the cache."""
        results: tuple[Tensor, ...] = self.decoder(*tensors)
        return results


def _variable_sizes(tensor: CachedTensor) -> dict[int, str]:
    return {axis: str(size) for axis, size in enumerate(tensor.shape) if isinstance(size, str)}


def _sample(tensor: CachedTensor) -> Tensor:
    sizes = {"batch": _BATCH, PAST: _PAST_TOKENS}
    return torch.zeros([size if isinstance(size, int) else sizes[size] for size in tensor.shape])


def _make_kept_positions_optional(model: ir.Model) -> None:
    """Replace the indices by the optional number of last tokens to keep; 0, the default, for all.

    The indices are ``max(T - keep, 0) … T``, or ``0 … T`` for 0.
    """
    graph = model.graph
    kept = next(value for value in graph.inputs if value.name == _KEPT_POSITIONS)
    ids = next(value for value in graph.inputs if value.name == INPUT_IDS)
    keep = ir.Value(
        name=LOGITS_TO_KEEP,
        shape=ir.Shape([1]),
        type=ir.TensorType(ir.DataType.INT64),
        const_value=ir.tensor(np.zeros(1, np.int64), name=LOGITS_TO_KEEP),
    )
    nodes: list[ir.Node] = []

    def add(op: str, *inputs: ir.Value, **attributes: Any) -> ir.Value:
        nodes.append(ir.node(op, list(inputs), attributes))
        nodes[-1].outputs[0].dtype = ir.DataType.INT64
        return nodes[-1].outputs[0]

    def constant(*values: int, scalar: bool = False) -> ir.Value:
        array = np.array(values[0] if scalar else values, np.int64)
        return add("Constant", value=ir.tensor(array))

    zero, one, axis = constant(0), constant(1, scalar=True), constant(0)
    tokens = add("Shape", ids, start=1, end=2)
    first = add("Max", add("Sub", tokens, keep), zero)
    chosen = add("Where", _is_zero(nodes, keep, zero), zero, first)
    indices = add("Range", add("Squeeze", chosen, axis), add("Squeeze", tokens, axis), one)
    indices.shape = ir.Shape(["kept"])
    ir.convenience.replace_all_uses_with(kept, indices)
    graph.inputs.remove(kept)
    graph.inputs.append(keep)
    graph.register_initializer(keep)
    graph.insert_before(graph[0], nodes)


def _is_zero(nodes: list[ir.Node], value: ir.Value, zero: ir.Value) -> ir.Value:
    nodes.append(ir.node("Equal", [value, zero]))
    nodes[-1].outputs[0].dtype = ir.DataType.BOOL
    return nodes[-1].outputs[0]


def _name_dimensions(model: ir.Model, tensors: Sequence[CachedTensor]) -> None:
    """State the dimensions of the cache's outputs, which the trace leaves as expressions."""
    shapes = {KvCacheLayout.present_name(PAST_PREFIX + tensor.name): tensor for tensor in tensors}
    for value in model.graph.outputs:
        if value.name in shapes:
            sizes = shapes[value.name].shape
            value.shape = ir.Shape(["total" if size == PAST else size for size in sizes])
