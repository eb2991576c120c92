"""Tracing of transformers' classes with the library's own corrections for exporters.

transformers.exporters holds replacements of operations that cannot be traced, translations of
operators that torch has no ONNX nodes for, and corrections of graphs that ONNX Runtime refuses.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeGuard
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.onnx._internal.exporter import _core
from transformers import PreTrainedModel
from transformers.exporters import exporter_dynamo, exporter_onnx
from transformers.exporters.utils import apply_fx_node_fixes, apply_patches

from compressor.errors import PassError
from compressor.models.capabilities.windowed_attention import whole_windows
from passes.export_onnx.bfloat16 import compute_bfloat16_in_float32
from passes.export_onnx.complex_numbers import complex_as_pairs
from passes.export_onnx.masks import AdditiveMasks, AnyIsTrue
from passes.export_onnx.tracing import GraphInterface, trace

if TYPE_CHECKING:
    import onnx_ir as ir

_CORRECTIONS = ("onnx", exporter_dynamo.DynamoExporter.export_format.value)
"""Sets of replacements of operations and methods."""
_PREPARE = "_prepare_exported_program_for_export"
"""Function of torch's exporter that decomposes a program, which transformers replaces too."""
_LINES = 3
"""Lines of a library's error that are quoted."""
_EXPERTS = "batched_mm"
"""Experts as products of gathered weights: other implementations loop over values."""
_ATTENTION = "eager"
"""Attention as plain products with an additive mask: rows that are all masked stay finite."""


def trace_class(
    module: nn.Module,
    tensors: tuple[Tensor, ...],
    interface: GraphInterface,
    *,
    needs_corrections: bool = False,
) -> ir.Model:
    """Trace a module that contains classes of transformers; see ``tracing.trace``.

    Args:
        module: the module.
        tensors: arguments of one call.
        interface: names, variable dimensions and operators of the graph.
        needs_corrections: False to trace without the library's corrections where tracing with
            them fails: one that some class needs may be in the way of another.

    Raises:
        PassError: torch cannot trace a class, or has no ONNX operators for what it computes.
    """
    make_traceable(module)
    with whole_windows(module, lambda: module(*tensors)):
        try:
            graph = _trace_corrected(module, tensors, interface)
        except PassError as error:
            if needs_corrections:
                raise
            graph = _trace_otherwise(module, tensors, interface, error)
    compute_bfloat16_in_float32(graph)
    return graph


def _trace_otherwise(
    module: nn.Module, tensors: tuple[Tensor, ...], interface: GraphInterface, error: PassError
) -> ir.Model:
    """Trace without the library's corrections, or with masks for padding; raise ``error`` if not.

    Args:
        module: the module.
        tensors: arguments of one call.
        interface: names, variable dimensions and operators of the graph.
        error: why it cannot be traced with the corrections.
    """
    try:
        return _trace_as_it_is(module, tensors, interface)
    except PassError:
        pass
    try:
        with AnyIsTrue():
            return _trace_corrected(module, tensors, interface)
    except PassError:
        raise error from None


def _trace_corrected(
    module: nn.Module, tensors: tuple[Tensor, ...], interface: GraphInterface
) -> ir.Model:
    """Trace with the library's corrections; raise ``PassError`` if that fails."""
    translations = {**exporter_onnx._ONNX_TRANSLATION_TABLE, **interface.translations}
    with _errors(), _corrections():
        graph = trace(module, tensors, replace(interface, translations=translations))
    graphs: list[Any] = [graph.graph, *graph.functions.values()]
    for part in graphs:
        for correct in exporter_onnx._IR_FIXES:
            correct(part)
    return graph


def _trace_as_it_is(
    module: nn.Module, tensors: tuple[Tensor, ...], interface: GraphInterface
) -> ir.Model:
    """Trace without corrections; raise ``PassError`` if that fails."""
    with _errors():
        return trace(module, tensors, interface)


@contextmanager
def _errors() -> Iterator[None]:
    """Trace without gradients and complex tensors; turn errors of torch and classes into ours."""
    try:
        with torch.no_grad(), complex_as_pairs(), AdditiveMasks():
            yield
    except PassError:
        raise
    except Exception as error:  # torch raises classes of its own and of the traced code
        raise PassError(
            f"torch {torch.__version__} cannot export this class: {_cause(error)}",
            remedy="fix sizes of inputs with `dynamic:`, or measure and ship the torch artifact",
        ) from error


def _cause(error: BaseException) -> str:
    """Return the class and the first lines of the innermost error."""
    while (cause := error.__cause__) is not None:
        error = cause
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {' '.join(lines[:_LINES]) or 'no details'}"


def make_traceable(module: nn.Module) -> None:
    """Select implementations of attention and experts that can be traced, in place."""
    parts = [(name, part) for name, part in module.named_modules() if _is_class(part)]
    for name, part in parts:
        if not any(name.startswith(f"{other}.") or (name and not other) for other, _ in parts):
            part.set_attn_implementation(_ATTENTION)
        if part._can_set_experts_implementation():
            part.set_experts_implementation(_EXPERTS)


def _is_class(module: nn.Module) -> TypeGuard[PreTrainedModel]:
    return isinstance(module, PreTrainedModel)


@contextmanager
def _corrections() -> Iterator[None]:
    with apply_patches(_CORRECTIONS[0]), apply_patches(_CORRECTIONS[1]), _early_corrections():
        yield


@contextmanager
def _early_corrections() -> Iterator[None]:
    """Correct the traced program before torch decomposes it too, as transformers' exporter does.

    Differences of a float and integers, such as ``1.0 - mask``, cannot be decomposed otherwise.
    """
    prepare = getattr(_core, _PREPARE)

    def correct(exported_program: ExportedProgram, **options: Any) -> ExportedProgram:
        apply_fx_node_fixes(_CORRECTIONS[0], exported_program.graph_module)
        result: ExportedProgram = prepare(exported_program, **options)
        return result

    with patch.object(_core, _PREPARE, correct):
        yield
