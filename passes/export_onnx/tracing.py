"""A module of a family to an ONNX graph in memory."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from compressor.data.contract import Batch
from compressor.models.capabilities.signature import InputSpec

if TYPE_CHECKING:
    from onnxscript import ir

_TRACED_BATCH = 2  # a dimension of size 1 would be taken for a constant


class _Positional(nn.Module):
    """Takes the inputs in order, gives the outputs in order: what a graph can have."""

    def __init__(
        self, module: nn.Module, inputs: Sequence[InputSpec], outputs: Sequence[str]
    ) -> None:
        super().__init__()
        self.module = module
        self.inputs = tuple(spec.name for spec in inputs)
        self.outputs = tuple(outputs)

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Tensors in the order of the family's inputs to those in the order of its outputs."""
        found = self.module(**dict(zip(self.inputs, tensors, strict=True)))
        return tuple(found[name] for name in self.outputs)


def onnx_from_torch(
    module: nn.Module,
    inputs: Sequence[InputSpec],
    outputs: Sequence[str],
    sample: Batch,
    opset: int,
    translations: Mapping[Callable[..., Any], Callable[..., Any]] | None = None,
) -> ir.Model:
    """The graph of a module (in eval mode), with a name for every dimension that ``inputs`` names.

    Args:
        module: its ``forward`` takes the inputs by keyword and returns a dict.
        inputs: names, dtypes and shapes of the graph's inputs.
        outputs: names of the graph's outputs, keys of that dict.
        sample: one batch of real samples, cast to the inputs' dtypes; only shapes and dtypes matter.
        opset: the version of ONNX's operators.
        translations: torch operators that are not torch's own, to what makes their nodes.
    """
    tensors = tuple(torch.from_numpy(_repeated(sample[spec.name])) for spec in inputs)
    dynamic = tuple(
        {axis: size for axis, size in enumerate(spec.shape) if isinstance(size, str)}
        for spec in inputs
    )
    names = [spec.name for spec in inputs]
    return exported(
        _Positional(module, inputs, outputs),
        tensors,
        names,
        outputs,
        (dynamic,),
        opset,
        translations,
    )


def exported(
    module: nn.Module,
    tensors: tuple[Tensor, ...],
    names: Sequence[str],
    outputs: Sequence[str],
    dynamic: tuple[Any, ...],
    opset: int,
    translations: Mapping[Callable[..., Any], Callable[..., Any]] | None = None,
) -> ir.Model:
    """The graph of a module that takes and gives tensors in order.

    Args:
        module: what is traced.
        tensors: one call's inputs.
        names: of the graph's inputs.
        outputs: names of the graph's outputs.
        dynamic: the dimensions that vary, as ``torch.export`` takes them.
        opset: the version of ONNX's operators.
        translations: torch operators that are not torch's own, to what makes their nodes.
    """
    with _quiet():
        program = torch.onnx.export(
            module.eval(),
            tensors,
            dynamo=True,
            opset_version=opset,
            input_names=list(names),
            output_names=list(outputs),
            dynamic_shapes=dynamic,
            external_data=False,
            verbose=False,
            custom_translation_table=dict(translations or {}),
        )
    if program is None:
        raise RuntimeError("torch.onnx.export returned nothing")
    model: ir.Model = program.model
    kept = set(model.graph.outputs)
    for value in [
        value for node in model.graph.all_nodes() for value in node.outputs if value not in kept
    ]:
        if (
            value.name in outputs
        ):  # the exporter calls what it looks up `embedding`, whatever the outputs are called
            value.name = f"{value.name}.inner"
    return model


def _repeated(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The first samples; a single one is repeated."""
    return np.ascontiguousarray(array[np.arange(_TRACED_BATCH) % len(array)])


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence what the exporter says about itself, and only that."""
    registration = logging.getLogger("torch.onnx._internal.exporter._registration")
    level = registration.level
    registration.setLevel(logging.ERROR)  # "torchvision is not installed"
    try:
        with warnings.catch_warnings():
            # Several inputs share a dimension's name on purpose: they share its size.
            warnings.filterwarnings(
                "ignore", message="# The axis name: .* will not be used", category=UserWarning
            )
            # torch's own use of its own pytree.
            warnings.filterwarnings(
                "ignore", message=".*LeafSpec.* is deprecated", category=FutureWarning
            )
            yield
    finally:
        registration.setLevel(level)
