"""Trace torch modules to ONNX graphs with ``torch.onnx.export(dynamo=True)``."""

from __future__ import annotations

import gc
import io
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.export._patches import (
    register_gru_while_loop_decomposition,
    register_lstm_while_loop_decomposition,
)

from compressor.data.contract import Batch
from compressor.graphs.values import Array
from compressor.models.capabilities.signature import InputSpec
from passes.export_onnx.symbolic_lengths import symbolic_lengths
from passes.export_onnx.tracing_errors import export_error

if TYPE_CHECKING:
    import onnx_ir as ir

_TRACED_BATCH = 2  # the exporter takes a dimension of size 1 for a constant
Translations = Mapping[Callable[..., Any], Callable[..., Any]]
"""Custom torch operator to the function that makes its ONNX nodes."""
_LIBRARY = "transformers."
_NOISY_LOGGERS = (
    "torch.onnx._internal.exporter._registration",  # "torchvision is not installed"
    "torch.fx.experimental.symbolic_shapes",  # "Unable to find user code"
)


@dataclass(frozen=True, slots=True)
class GraphInterface:
    """Inputs and outputs of a graph that is traced."""

    inputs: Sequence[str]
    """Names in the order of the module's arguments."""
    outputs: Sequence[str]
    """Names in the order of the module's results."""
    dynamic: tuple[Any, ...]
    """Variable dimensions of each argument, as ``torch.export`` takes them."""
    opset: int
    translations: Translations = field(default_factory=dict)


Tracer = Callable[[nn.Module, tuple[Tensor, ...], GraphInterface], "ir.Model"]
"""``trace``, or ``class_tracing.trace_class`` for classes of transformers."""


class _Positional(nn.Module):
    """A module with keyword arguments and a dict of results, as one with tuples of both."""

    def __init__(self, module: nn.Module, inputs: Sequence[str], outputs: Sequence[str]) -> None:
        super().__init__()
        self.module, self.inputs, self.outputs = module, tuple(inputs), tuple(outputs)

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Return the outputs in order, for the inputs in order."""
        results = self.module(**dict(zip(self.inputs, tensors, strict=True)))
        return tuple(results[name] for name in self.outputs)


def onnx_from_torch(
    module: nn.Module,
    inputs: Sequence[InputSpec],
    outputs: Sequence[str],
    sample: Batch,
    opset: int,
    translations: Translations | None = None,
    tracer: Tracer | None = None,
) -> ir.Model:
    """Trace a module to a graph; dimensions that ``inputs`` names stay variable.

    Args:
        module: a module in eval mode; its ``forward`` takes the inputs by keyword and returns a
            dict.
        inputs: names, dtypes and shapes of the graph's inputs.
        outputs: names of the graph's outputs, keys of that dict.
        sample: a batch of samples with the inputs' dtypes; only its shapes and dtypes matter.
        opset: the ONNX operator set version.
        translations: translations of custom torch operators.
        tracer: traces the module; by default ``trace``.

    Raises:
        PassError: a class of transformers cannot be traced.
    """
    tensors = tuple(torch.from_numpy(_traced_samples(sample[spec.name])) for spec in inputs)
    dynamic = tuple(
        {axis: size for axis, size in enumerate(spec.shape) if isinstance(size, str)}
        for spec in inputs
    )
    names = [spec.name for spec in inputs]
    interface = GraphInterface(names, outputs, (dynamic,), opset, translations or {})
    positional = _Positional(module, names, outputs)
    return (tracer or trace)(positional, tensors, interface)


def has_library_classes(module: nn.Module) -> bool:
    """Return True if a module consists of classes of transformers, in whole or in part."""
    return any(type(part).__module__.startswith(_LIBRARY) for part in module.modules())


def trace(module: nn.Module, tensors: tuple[Tensor, ...], interface: GraphInterface) -> ir.Model:
    """Trace a module that takes and returns tensors in order.

    Args:
        module: the module; it is put into eval mode.
        tensors: arguments of one call.
        interface: names, variable dimensions and operators of the graph.

    Raises:
        PassError: torch cannot trace the module.
    """
    try:
        with (
            _silenced_exporter(),
            _recurrent_layers_as_loops(),
            _paused_collection(),
            symbolic_lengths(module),
        ):
            program = torch.onnx.export(
                module.eval(),
                tensors,
                dynamo=True,
                opset_version=interface.opset,
                input_names=list(interface.inputs),
                output_names=list(interface.outputs),
                dynamic_shapes=interface.dynamic,
                external_data=False,
                verbose=False,
                custom_translation_table=dict(interface.translations),
            )
    except torch.onnx.OnnxExporterError as error:
        raise export_error(error, interface.inputs, interface.dynamic[0]) from error
    if program is None:
        raise RuntimeError("torch.onnx.export returned nothing")
    model: ir.Model = program.model
    _rename_inner_values(model, interface.outputs)
    return model


def _rename_inner_values(model: ir.Model, outputs: Sequence[str]) -> None:
    """Rename values that have the name of an output: torch calls every lookup `embedding`."""
    graph_outputs = set(model.graph.outputs)
    for node in model.graph.all_nodes():
        for value in node.outputs:
            if value not in graph_outputs and value.name in outputs:
                value.name = f"{value.name}.inner"


def _traced_samples(array: Array) -> Array:
    """Return the first samples; a single one is repeated."""
    return np.ascontiguousarray(array[np.arange(_TRACED_BATCH) % len(array)])


@contextmanager
def _paused_collection() -> Iterator[None]:
    """Pause the garbage collector: a trace creates millions of objects and keeps most of them.

    Collections while it runs take a tenth of its time.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


@contextmanager
def _recurrent_layers_as_loops() -> Iterator[None]:
    """Let torch compute recurrent layers by loops in the graph for the time of an export.

    torch does so itself while it captures a program (``torch.export._patches``), but not while it
    decomposes the program afterwards: there its kernels unroll the sequence, and the graph would
    state the length of the sample. It also keeps the kernels that earlier traces of the same
    process looked up, such as those of qat, so these are looked up again.
    """
    operators = (torch.ops.aten.lstm.input, torch.ops.aten.gru.input)
    for operator in operators:
        operator._dispatch_cache.clear()
    try:
        with register_lstm_while_loop_decomposition(), register_gru_while_loop_decomposition():
            yield
    finally:
        for operator in operators:
            operator._dispatch_cache.clear()


@contextmanager
def _silenced_exporter() -> Iterator[None]:
    """Silence known messages of the exporter about its own internals."""
    loggers = [logging.getLogger(name) for name in _NOISY_LOGGERS]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        # Where the trace fails, torch prints whole graphs; the error quotes what matters.
        with redirect_stderr(io.StringIO()), warnings.catch_warnings():
            # Several inputs share a dimension's name on purpose: they share its size.
            warnings.filterwarnings(
                "ignore", message="# The axis name: .* will not be used", category=UserWarning
            )
            # Recurrent layers keep a list of their parameters; the graph reads the parameters.
            warnings.filterwarnings(
                "ignore", message="The tensor attribute.*_flat_weights", category=UserWarning
            )
            # torch's own loops of recurrent layers, which read gradients and an old function.
            for message in ("The .grad attribute of a Tensor that is not a leaf", "_check_is_size"):
                warnings.filterwarnings("ignore", message=message)
            # torch's own use of its own pytree.
            warnings.filterwarnings(
                "ignore", message=".*LeafSpec.* is deprecated", category=FutureWarning
            )
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
