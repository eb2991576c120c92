"""Linear layers of a decoder's graph, for checks before it is built.

For architectures with a row in the tables torch is not imported.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from compressor.models.families.transformers.layouts import (
    LM_HEAD,
    DecoderShape,
    decoder_shape,
    is_tabulated,
)
from compressor.models.families.transformers.linear_groups import decoder_layer_sites


@dataclass(frozen=True, slots=True)
class LinearGroup:
    """Linear layers that read one input, and are one product in the graph."""

    modules: tuple[str, ...]
    """Names in a decoder layer."""
    inputs: int


@dataclass(frozen=True, slots=True)
class GraphLayers:
    """Linear layers of a decoder."""

    stack: str
    """Full name of the list of decoder layers."""
    layers: int
    groups: tuple[LinearGroup, ...]
    """Those of a layer."""
    head: str
    hidden: int
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
    sizes, names, layer = architecture.decoder, architecture.names, architecture.layer
    attention, ffn = layer.attention, layer.ffn
    return GraphLayers(
        stack=f"{names.root}.{names.layers}",
        layers=sizes.layers,
        groups=(
            LinearGroup(attention.projections, sizes.hidden),
            LinearGroup((attention.output,), sizes.heads * sizes.head_width),
            LinearGroup(ffn.inputs, sizes.hidden),
            LinearGroup((ffn.output,), ffn.width),
        ),
        head=names.head,
        hidden=sizes.hidden,
        tied=sizes.tied,
        stores_transposed=architecture.transposed,
    )


def _tabulated(tree: Mapping[str, Any], shape: DecoderShape) -> GraphLayers:
    inputs = {"attention output": shape.heads * shape.head_width, "ffn output": shape.ffn}
    return GraphLayers(
        stack=shape.layout.layers_name,
        layers=shape.layers,
        groups=tuple(
            LinearGroup(site.linears, inputs.get(site.name, shape.hidden))
            for site in decoder_layer_sites(tree)
        ),
        head=LM_HEAD,
        hidden=shape.hidden,
        tied=shape.tied,
    )
