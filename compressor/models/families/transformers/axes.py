"""Cuttable axes of a checkpoint: layers, heads, feed-forward widths and the hidden width."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from compressor.models.capabilities.cuttable_axes import Axis, Cut, FieldPath, weight_and_bias
from compressor.models.families.transformers.layouts import (
    LM_HEAD,
    DecoderShape,
    decoder_shape,
    text_config,
    vision_config,
)

_COUPLED = "hidden and heads"
"""Axes that shrink in proportion: the width of a head is hidden width / heads."""


def checkpoint_axes(tree: Mapping[str, Any]) -> Iterator[Axis]:
    """Yield the axes of a checkpoint; the hidden width only where it can be cut."""
    decoder = decoder_shape(tree)
    layers_name, text = decoder.layout.layers_name, decoder.layout.text
    has_types = bool(text_config(tree).get("layer_types"))
    yield Axis(
        layers_name,
        "layers",
        decoder.layers,
        (),
        (((*text, "num_hidden_layers"), 1),),
        stack=layers_name,
        dimension="layers",
        unit_lists=((*text, "layer_types"),) if has_types else (),
    )
    for number in range(decoder.layers):
        layer = f"{layers_name}.{number}"
        yield _head_axis(decoder, f"{layer}.self_attn")
        yield _ffn_axis(decoder, f"{layer}.mlp")
    if not decoder.layout.scaled_embedding:
        yield _hidden_axis(decoder)
    if decoder.layout.vision is not None:
        yield from _vision_axes(tree, decoder.layout.vision)


def _pinned(decoder: DecoderShape) -> tuple[tuple[FieldPath, int], ...]:
    """Return the width of a head, which defaults to a function of the sizes that are cut."""
    if not decoder.layout.head_width_is_free:
        return ()
    return (((*decoder.layout.text, "head_dim"), decoder.head_width),)


def _head_axis(decoder: DecoderShape, attention: str) -> Axis:
    """Return the axis of an attention's heads.

    Units are whole key groups where ``head_dim`` is free. Otherwise a unit is one query head of
    every key group, and so it is under multi-query attention, where all heads share one key head.
    """
    text, width, per_key = decoder.layout.text, decoder.head_width, decoder.heads_per_key
    head_count: FieldPath = (*text, "num_attention_heads")
    is_free = decoder.layout.head_width_is_free
    if not is_free or decoder.key_heads == 1:
        return Axis(
            attention,
            "heads",
            per_key,
            tuple(_query_cuts(decoder, attention, width, decoder.key_heads)),
            ((head_count, decoder.key_heads),),
            _pinned(decoder),
            dimension="heads",
            width="" if is_free else _COUPLED,
        )
    cuts = _query_cuts(decoder, attention, per_key * width, 1)
    for part in ("k_proj", "v_proj"):
        cuts += _output_cuts(f"{attention}.{part}", decoder.query_bias, width)
    return Axis(
        attention,
        "heads",
        decoder.key_heads,
        tuple(cuts),
        ((head_count, per_key), ((*text, "num_key_value_heads"), 1)),
        _pinned(decoder),
        dimension="heads",
    )


def _query_cuts(decoder: DecoderShape, attention: str, block: int, segments: int) -> list[Cut]:
    cuts = _output_cuts(f"{attention}.q_proj", decoder.query_bias, block, segments)
    return [*cuts, Cut(f"{attention}.o_proj.weight", 1, block, segments)]


def _output_cuts(module: str, bias: bool, block: int = 1, segments: int = 1) -> list[Cut]:
    """Return the cuts of a linear layer whose outputs hold the units."""
    cuts = [Cut(f"{module}.weight", 0, block, segments)]
    return [*cuts, Cut(f"{module}.bias", 0, block, segments)] if bias else cuts


def _ffn_axis(decoder: DecoderShape, ffn: str) -> Axis:
    if decoder.layout.fused_ffn:
        cuts = _output_cuts(f"{ffn}.gate_up_proj", decoder.ffn_bias, segments=2)
    else:
        cuts = [
            *_output_cuts(f"{ffn}.gate_proj", decoder.ffn_bias),
            *_output_cuts(f"{ffn}.up_proj", decoder.ffn_bias),
        ]
    field: FieldPath = (*decoder.layout.text, "intermediate_size")
    return Axis(
        ffn,
        "ffn",
        decoder.ffn,
        (*cuts, Cut(f"{ffn}.down_proj.weight", 1)),
        ((field, 1),),
        dimension="ffn",
    )


def _hidden_axis(decoder: DecoderShape) -> Axis:
    """Return the axis of the residual stream, which every layer reads and adds to."""
    layout = decoder.layout
    cuts = [Cut(f"{layout.root}.embed_tokens.weight", 1, table=True)]
    for number in range(decoder.layers):
        layer = f"{layout.layers_name}.{number}"
        cuts += [Cut(f"{layer}.{norm}.weight", 0, norm=True) for norm in layout.norms]
        readers = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"]
        readers += ["mlp.gate_up_proj"] if layout.fused_ffn else ["mlp.gate_proj", "mlp.up_proj"]
        cuts += [Cut(f"{layer}.{reader}.weight", 1) for reader in readers]
        cuts += _output_cuts(f"{layer}.self_attn.o_proj", decoder.out_bias)
        cuts += _output_cuts(f"{layer}.mlp.down_proj", decoder.ffn_bias)
    cuts += [Cut(f"{layout.root}.norm.weight", 0, norm=True), Cut(f"{LM_HEAD}.weight", 1)]
    if layout.vision is not None:
        cuts.append(Cut(f"{layout.vision}.merger.down_proj.weight", 0))
    field: FieldPath = (*layout.text, "hidden_size")
    return Axis(
        layout.root,
        "hidden",
        decoder.hidden,
        tuple(cuts),
        ((field, 1),),
        _pinned(decoder),
        dimension="hidden",
        width="" if layout.head_width_is_free else _COUPLED,
    )


def _vision_axes(tree: Mapping[str, Any], vision: str) -> Iterator[Axis]:
    """Yield the widths of ``Glm4vVisionModel`` that equal the language model's hidden width."""
    config = vision_config(tree)
    field: FieldPath = ("vision_config", "out_hidden_size")
    cuts_by_name: dict[str, tuple[Cut, ...]] = {}
    for number in range(config["depth"]):
        mlp = f"{vision}.blocks.{number}.mlp"
        cuts_by_name[mlp] = (
            Cut(f"{mlp}.gate_proj.weight", 0),
            Cut(f"{mlp}.up_proj.weight", 0),
            Cut(f"{mlp}.down_proj.weight", 1),
        )
    merger = f"{vision}.merger"
    cuts_by_name[f"{vision}.downsample"] = (
        *weight_and_bias(f"{vision}.downsample", 0),
        Cut(f"{merger}.proj.weight", 1),
    )
    cuts_by_name[f"{merger}.proj"] = (
        Cut(f"{merger}.proj.weight", 0),
        *weight_and_bias(f"{merger}.post_projection_norm", 0),
        *(Cut(f"{merger}.{part}.weight", 1) for part in ("gate_proj", "up_proj")),
    )
    for name, cuts in cuts_by_name.items():
        yield Axis(
            name,
            "hidden",
            config["out_hidden_size"],
            cuts,
            ((field, 1),),
            dimension="hidden",
            width=_COUPLED,
        )
