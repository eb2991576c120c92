"""Parts of a decoder that is processed one layer at a time, found in the module of its class."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from compressor.models.capabilities.streamed_layers import MatrixShape, StreamedLayers
from compressor.models.families.transformers.conv1d import replace_conv1d
from compressor.models.families.transformers.experts.split import named_experts, split_experts
from compressor.models.families.transformers.generic.tasks import task_of
from compressor.models.families.transformers.modules import build_on_meta
from compressor.models.families.transformers.packed_loading import initialized_linears


@dataclass(frozen=True, slots=True)
class DecoderParts:
    """Modules of a decoder by their names."""

    layers: str
    """Module list of decoder layers."""
    tables: tuple[str, ...]
    """Embeddings of which only the rows of a batch's tokens have to be read."""
    towers: tuple[str, ...]
    """Encoders of images or sound."""
    others: tuple[str, ...]
    """Modules outside of all of these that have weights or are called before the layers."""
    head: str | None
    """Linear layer that computes the logits."""


def decoder_parts(module: PreTrainedModel) -> DecoderParts | None:
    """Return the parts of a decoder; None if it has no list of layers with linear layers inside.

    Args:
        module: the class; its parameters may be on the device ``meta``.
    """
    layers = _decoder_layers(module)
    if layers is None:
        return None
    head_module = module.get_output_embeddings()  # type: ignore[no-untyped-call]
    head = _name_of(module, head_module) if isinstance(head_module, nn.Linear) else None
    siblings = [name for name in _beside(module, "", layers) if name != head]
    tables = [name for name in siblings if _is_table(module.get_submodule(name))]
    towers = [name for name in siblings if _stacks(module.get_submodule(name))]
    others = [name for name in siblings if name not in {*tables, *towers}]
    return DecoderParts(layers, tuple(tables), tuple(towers), tuple(others), head)


def streamed_layers(tree: Mapping[str, Any]) -> StreamedLayers | None:
    """Return the layers of a causal language model without a row in the tables.

    Returns:
        None for a class that encodes, or has an encoder, or no list of decoder layers.

    Raises:
        ModelError: transformers has no such class, or rejects the config.
    """
    module = build_on_meta(tree)
    counts = {name: value.numel() for name, value in module.named_parameters()}
    has_one_grid = bool(initialized_linears(module))
    transposed = replace_conv1d(module)
    task = task_of(type(module).__name__, module.main_input_name)
    parts = None if task.encodes or module.config.is_encoder_decoder else decoder_parts(module)
    if parts is None:
        return None
    split_experts(module)
    head: Any = None if parts.head is None else module.get_submodule(parts.head)
    table: Any = module.get_input_embeddings()
    tied = head is None or head.weight is table.weight or _is_tied(module, parts.head)
    sizes = {
        "embedding": _count(counts, [_name_of(module, table) or ""]),
        "layers": _count(counts, [parts.layers]),
        "head": 0 if tied or parts.head is None else _count(counts, [parts.head]),
        "vision": _count(counts, parts.towers),
    }
    decoder = linear_shapes(module, parts.layers)
    sizes["all"] = sum(counts.values()) - (_count(counts, [parts.head or ""]) if tied else 0)
    return StreamedLayers(
        layers_name=parts.layers,
        layers=len(list(module.get_submodule(parts.layers).children())),
        decoder=decoder,
        towers={
            name: shape
            for tower in parts.towers
            for name, shape in linear_shapes(module, tower).items()
        },
        head_name=parts.head,
        head=tuple(table.weight.shape) if head is None else (head.out_features, head.in_features),
        is_head_tied=tied,
        parameters=sizes,
        one_grid=frozenset(decoder if has_one_grid else _in_experts(module, decoder)),
        transposed=transposed,
    )


def _in_experts(module: nn.Module, linears: Iterable[str]) -> Iterator[str]:
    """Yield the linear layers of experts."""
    prefixes = tuple(prefix for prefix, _ in named_experts(module))
    return (name for name in linears if name.startswith(prefixes))


def linear_shapes(module: nn.Module, part: str) -> dict[str, MatrixShape]:
    """Return outputs and inputs of the linear layers in a part of a module, by full names."""
    return {
        f"{part}.{name}": (layer.out_features, layer.in_features)
        for name, layer in module.get_submodule(part).named_modules()
        if isinstance(layer, nn.Linear)
    }


def leaf_parts(module: nn.Module, name: str) -> Iterator[str]:
    """Yield the modules with weights in a part that are called in turn, such as a tower's layers.

    Module lists with linear layers inside are entered; other modules are taken as a whole.
    """
    part = module.get_submodule(name)
    if not _stacks(part):
        if next(part.parameters(), None) is not None:
            yield name
        return
    for child, _ in part.named_children():
        yield from leaf_parts(module, f"{name}.{child}")


def _decoder_layers(module: PreTrainedModel) -> str | None:
    """Return the name of the largest list of layers in the decoder of a class."""
    decoder = module.get_decoder()  # type: ignore[no-untyped-call]
    stacks = _stacks(decoder if isinstance(decoder, nn.Module) else module)
    if not stacks:
        return None
    return _name_of(module, max(stacks, key=_size))


def _stacks(module: nn.Module) -> list[nn.ModuleList]:
    """Return the outermost lists whose members have linear layers inside."""
    found: list[nn.ModuleList] = []
    for child in module.children() if not isinstance(module, nn.ModuleList) else [module]:
        members = list(child.children())
        if isinstance(child, nn.ModuleList) and members and any(map(_has_linear, members)):
            found.append(child)
        elif child is not module:
            found += _stacks(child)
    return found


def _has_linear(module: nn.Module) -> bool:
    return any(isinstance(child, nn.Linear) for child in list(module.modules())[1:])


def _beside(module: nn.Module, prefix: str, layers: str) -> Iterator[str]:
    """Yield the modules beside the path to the layers."""
    for name, child in module.named_children():
        full = f"{prefix}{name}"
        if f"{layers}.".startswith(f"{full}."):
            if full != layers:
                yield from _beside(child, f"{full}.", layers)
        else:
            yield full


def _is_table(module: nn.Module) -> bool:
    """Return True for an embedding that is looked up with nothing but indices."""
    if not isinstance(module, nn.Embedding):
        return False
    return len(inspect.signature(type(module).forward).parameters) == 2


def _is_tied(module: PreTrainedModel, head: str | None) -> bool:
    ties = dict(module.all_tied_weights_keys)
    return f"{head}.weight" in {*ties, *ties.values()}


def _name_of(module: nn.Module, part: nn.Module) -> str | None:
    return next((name for name, child in module.named_modules() if child is part), None)


def _size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _count(counts: Mapping[str, int], parts: Any) -> int:
    return sum(
        count
        for name, count in counts.items()
        if any(part and name.startswith(f"{part}.") for part in parts)
    )
