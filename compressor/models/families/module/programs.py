"""Programs of torch.export as modules: their graph without weights, and layers in place of graphs.

``torch.export.load`` may unpickle, which can run code, so a program is opened only where code is
allowed.
"""

from __future__ import annotations

import base64
import io
import warnings
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.fx import Node

from compressor.config.permission import require_code_allowed
from compressor.errors import ModelError
from compressor.models.families.module.config import BATCH, NamedInput

_aten = torch.ops.aten
_LINEAR, _NORM = _aten.linear.default, _aten.batch_norm.default
_CONVS: Mapping[Any, type[nn.Conv1d | nn.Conv2d]] = {
    _aten.conv1d.default: nn.Conv1d,
    _aten.conv2d.default: nn.Conv2d,
}
_NORMS = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}
"""Number of dimensions of the input to the layer that takes it."""
_ZIP = b"PK"
_EPSILON, _MOMENTUM = 7, 6
"""Positions among the arguments of ``batch_norm``."""
_CONV_SETTINGS = 3
"""First position of stride, padding, dilation and groups among the arguments of convolutions."""


def load_program(source: Path | bytes, name: str) -> ExportedProgram:
    """Return the program of an archive.

    Raises:
        UsageError: code is not allowed.
        ModelError: it cannot be read.
    """
    require_code_allowed(f"{name}, which may hold pickles,")
    try:
        with zipfile.ZipFile(
            io.BytesIO(source) if isinstance(source, bytes) else source
        ) as archive:
            damaged = archive.testzip()  # torch does not compare the checksums
    except (zipfile.BadZipFile, OSError) as error:
        raise ModelError(f"{name} cannot be read: {error}", remedy="copy it again") from error
    if damaged is not None:
        raise ModelError(f"{name} is damaged at {damaged}", remedy="copy or export it again")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch, about versions of its archive
            return torch.export.load(io.BytesIO(source) if isinstance(source, bytes) else source)
    except Exception as error:  # torch raises many kinds for a damaged archive
        lines = str(error).splitlines() or [type(error).__name__]
        raise ModelError(
            f"{name} cannot be read: {lines[0]}",
            remedy="the file is damaged, or of a torch that differs too much from the installed "
            f"{torch.__version__}: export it again with that",
        ) from error


def program_text(program: ExportedProgram) -> str:
    """Return a program without its weights, compressed, base64.

    Every weight takes a single value, and the inputs that it was traced with are left out. Most of
    the rest is text, such as a stack trace for each operator.
    """
    program._example_inputs = None
    program._state_dict = {name: _shrunk(value) for name, value in program.state_dict.items()}
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch, about views of one value
        torch.export.save(program, buffer)
    return base64.b64encode(zlib.compress(buffer.getvalue())).decode()


def program_inputs(program: ExportedProgram) -> tuple[NamedInput, ...]:
    """Return the inputs of a program.

    Raises:
        ModelError: an input is no tensor, or its first dimension does not vary.
    """
    positional, keywords = program.call_spec.in_spec.children()
    if nested := [
        spec for spec in (*positional.children(), *keywords.children()) if not spec.is_leaf()
    ]:
        raise ModelError(
            f"the program takes a {nested[0].type.__name__} of tensors",
            remedy="export a module whose `forward` takes each tensor as an argument of its own",
        )
    names = program.graph_signature.user_inputs
    values = {node.name: node.meta.get("val") for node in program.graph.nodes}
    return tuple(_input(str(name), values.get(str(name))) for name in names)


def build_program(text: str) -> nn.Module:
    """Return the module of ``program_text``, whose weights are to be set."""
    with torch.device("cpu"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch, about its own trees
        content = base64.b64decode(text)
        if not content.startswith(_ZIP):  # those of older artifacts are not compressed
            content = zlib.decompress(content)
        program = load_program(content, "the program of torch.export")
        module = torch.export.unflatten(program)
        for name, child in list(module.named_modules()):
            if name and (layer := _layer(child)) is not None:
                parent, _, last = name.rpartition(".")
                setattr(module.get_submodule(parent), last, layer)
        for child in module.modules():
            for node in getattr(getattr(child, "graph", None), "nodes", ()):
                node.meta.clear()  # fake tensors of the trace, which cannot be copied
        module.module_call_graph = _NeverCopied(module.module_call_graph)
        for tensor in module.state_dict(keep_vars=True).values():
            tensor.data = tensor.data.clone(memory_format=torch.contiguous_format)
    keywords = program.call_spec.in_spec.children()[1].context
    return _with_keywords(module, keywords) if keywords else module


class _NeverCopied(list[Any]):
    """A list that copies of a module share: torch warns where the trees in it are copied."""

    def __deepcopy__(self, memo: dict[int, Any]) -> _NeverCopied:
        return self


def _shrunk(value: Tensor) -> Tensor:
    tensor = torch.zeros((), dtype=value.dtype).expand(value.shape)
    return nn.Parameter(tensor, requires_grad=False) if isinstance(value, nn.Parameter) else tensor


def _input(name: str, value: Any) -> NamedInput:
    if not isinstance(value, Tensor):
        raise ModelError(f"the program takes {name}, which is no tensor", remedy="leave it out")
    if not value.ndim or isinstance(value.shape[0], int):
        raise ModelError(
            f"the program is exported for one size of the first dimension of {name}: "
            f"{list(value.shape)}",
            remedy="export it with `dynamic_shapes={name: {0: torch.export.Dim('batch')}}`",
        )
    sizes = [size if isinstance(size, int) else str(size) for size in value.shape[1:]]
    dtype = str(value.dtype).removeprefix("torch.")
    return NamedInput.model_validate({"name": name, "shape": (BATCH, *sizes), "dtype": dtype})


def _layer(module: nn.Module) -> nn.Module | None:
    """Return the layer of torch that a part of a program computes; None for any other part."""
    graph = getattr(module, "graph", None)
    if graph is None:
        return None
    calls = [node for node in graph.nodes if node.op in {"call_function", "call_module"}]
    inputs = [node for node in graph.nodes if node.op == "placeholder"]
    if len(calls) != 1 or len(inputs) != 1 or calls[0].args[:1] != (inputs[0],):
        return None
    tensors = dict(module.state_dict(keep_vars=True))
    layer = _created(calls[0], inputs[0], tensors)
    if layer is None or not tensors.keys() <= layer.state_dict().keys():
        return None
    for name, tensor in tensors.items():
        setattr(layer, name, tensor)
    return layer.eval()


def _created(call: Node, source: Node, tensors: dict[str, Tensor]) -> nn.Module | None:
    """Return the layer of a call, with weights of its own; None for another operator."""
    if "weight" not in tensors:
        return None
    shape, bias = tensors["weight"].shape, "bias" in tensors
    args: Sequence[Any] = call.args
    target: Any = call.target
    if target is _LINEAR:
        return nn.Linear(shape[1], shape[0], bias)
    if (conv := _CONVS.get(target)) is not None:
        rank, given = len(shape) - 2, args[_CONV_SETTINGS:]
        defaults: tuple[Any, ...] = ((1,) * rank, (0,) * rank, (1,) * rank, 1)
        *sizes, groups = (*given, *defaults[len(given) :])
        settings: Any = (tuple(shape[2:]), *map(tuple, sizes), groups, bias)
        return conv(shape[1] * groups, shape[0], *settings)
    value = source.meta.get("val")
    norm = None if value is None else _NORMS.get(value.ndim)
    if target is _NORM and norm is not None and "running_mean" in tensors:
        return norm(shape[0], args[_EPSILON], args[_MOMENTUM])
    return None


def _with_keywords(module: nn.Module, names: Sequence[str]) -> nn.Module:
    """Give a module a ``forward`` whose parameters are these keywords, in place."""
    import inspect

    original = type(module)

    def forward(self: nn.Module, **tensors: Tensor) -> Any:
        """Run the program."""
        return original.forward(self, **tensors)

    parameters = [inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)]
    parameters += [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY) for name in names]
    forward.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    module.__class__ = type(original.__name__, (original,), {"forward": forward})
    return module
