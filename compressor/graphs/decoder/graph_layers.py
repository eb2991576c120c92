"""Linear layers of a decoder's graph, for checks before it is built.

For architectures with a row in the tables torch is not imported.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from compressor.models.families.transformers.layouts import (
    LM_HEAD,
    DecoderShape,
    decoder_shape,
    is_tabulated,
)
from compressor.models.families.transformers.linear_groups import decoder_layer_sites

if TYPE_CHECKING:
    from compressor.graphs.decoder.architecture import DecoderSizes, Layer


@dataclass(frozen=True, slots=True)
class LinearGroup:
    """Linear layers that read one input, and are one product in the graph."""

    modules: tuple[str, ...]
    """Names in a decoder layer; those of experts are the names in the class with split experts."""
    inputs: int
    layers: tuple[int, ...]
    """Layers that have them."""
    is_expert: bool = False
    """True for layers of one expert among several, which have no slots for adapters."""


@dataclass(frozen=True, slots=True)
class GraphLayers:
    """Linear layers of a decoder."""

    stack: str
    """Full name of the list of decoder layers."""
    layers: int
    groups: tuple[LinearGroup, ...]
    head: str
    hidden: int
    heads: int
    key_heads: int
    tied: bool
    """True if the head shares the weight of the embedding."""
    stores_transposed: bool = False
    """True if matrices are stored as [inputs, outputs]."""


def graph_layers(tree: Mapping[str, Any]) -> GraphLayers:
    """Return the linear layers of a decoder whose graph can be built.

    Args:
        tree: config.json.
    """
    if is_tabulated(tree):
        return _tabulated(tree, decoder_shape(tree))
    from compressor.graphs.decoder.class_architecture import class_architecture

    architecture = class_architecture(tree, None)
    sizes, names = architecture.decoder, architecture.names
    numbers: dict[tuple[tuple[str, ...], int, bool], list[int]] = {}
    for number, layer in enumerate(architecture.layers):
        for group in _layer_groups(layer, sizes):
            numbers.setdefault(group, []).append(number)
    return GraphLayers(
        stack=f"{names.root}.{names.layers}",
        layers=sizes.layers,
        groups=tuple(
            LinearGroup(modules, inputs, tuple(found), is_expert)
            for (modules, inputs, is_expert), found in numbers.items()
        ),
        head=names.head,
        hidden=sizes.hidden,
        heads=sizes.heads,
        key_heads=sizes.key_heads,
        tied=sizes.tied,
        stores_transposed=architecture.transposed,
    )


def _layer_groups(layer: Layer, sizes: DecoderSizes) -> Iterator[tuple[tuple[str, ...], int, bool]]:
    """Yield linear layers that read one input, with its width, and True for those of experts."""
    from compressor.graphs.decoder.architecture import Mixture

    attention, ffn = layer.attention, layer.ffn
    yield attention.projections, sizes.hidden, False
    yield (attention.output,), sizes.heads * sizes.head_width, False
    if isinstance(ffn, Mixture):
        networks = [] if ffn.shared is None else [ffn.shared]
        *inputs, output = ffn.experts.layout.projections
        for number in range(ffn.experts.layout.experts):
            start = f"{ffn.experts.name}.{number}"
            yield tuple(f"{start}.{name}" for name in inputs), sizes.hidden, True
            yield (f"{start}.{output}",), ffn.experts.width, True
    else:
        networks = [ffn]
    for network in networks:
        yield network.inputs, sizes.hidden, False
        yield (network.output,), network.width, False


def _tabulated(tree: Mapping[str, Any], shape: DecoderShape) -> GraphLayers:
    inputs = {"attention output": shape.heads * shape.head_width, "ffn output": shape.ffn}
    return GraphLayers(
        stack=shape.layout.layers_name,
        layers=shape.layers,
        groups=tuple(
            LinearGroup(
                site.linears, inputs.get(site.name, shape.hidden), tuple(range(shape.layers))
            )
            for site in decoder_layer_sites(tree)
        ),
        head=LM_HEAD,
        hidden=shape.hidden,
        heads=shape.heads,
        key_heads=shape.key_heads,
        tied=shape.tied,
    )
