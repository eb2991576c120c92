"""The axes of a decoder: layers, inner widths, heads, and, where it may be cut, the hidden width that runs through everything."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from compressor.models.capabilities.cuttable_axes import Axis, Cut, FieldPath, weight_and_bias
from compressor.models.families.transformers.layouts import (
    LM_HEAD,
    DecoderShape,
    decoder_shape,
    text_config,
)

_COUPLED = "hidden and heads"


def checkpoint_axes(tree: Mapping[str, Any]) -> Iterator[Axis]:
    """All of a checkpoint's, layer by layer."""
    decoder = decoder_shape(tree)
    root, text = decoder.layout.root, decoder.layout.text
    types: tuple[FieldPath, ...] = (
        ((*text, "layer_types"),) if text_config(tree).get("layer_types") else ()
    )
    yield Axis(
        f"{root}.layers",
        "layers",
        decoder.layers,
        (),
        (((*text, "num_hidden_layers"), 1),),
        stack=f"{root}.layers",
        dimension="layers",
        unit_lists=types,
    )
    for number in range(decoder.layers):
        layer = f"{root}.layers.{number}"
        yield _heads(decoder, f"{layer}.self_attn")
        yield _ffn(decoder, f"{layer}.mlp")
    if not decoder.layout.scaled_embedding:
        yield _hidden(decoder)
    if decoder.layout.vision is not None:
        yield from _vision_axes(tree, decoder.layout.vision)


def _stated(decoder: DecoderShape) -> tuple[tuple[FieldPath, int], ...]:
    """The width of a head follows from others until something is cut."""
    return (
        (((*decoder.layout.text, "head_dim"), decoder.head_width),)
        if decoder.layout.head_width_is_free
        else ()
    )


def _heads(decoder: DecoderShape, attention: str) -> Axis:
    """Whole key groups where the width of a head is stated; else as many heads of every key group.

    Under multi-query attention, where all heads share one key head, single heads.
    """
    text, width = decoder.layout.text, decoder.head_width
    count: FieldPath = (*text, "num_attention_heads")
    per_key = decoder.heads_per_key

    def attended(block: int, segments: int) -> list[Cut]:
        written = [Cut(f"{attention}.q_proj.weight", 0, block, segments)]
        if decoder.query_bias:
            written.append(Cut(f"{attention}.q_proj.bias", 0, block, segments))
        return [*written, Cut(f"{attention}.o_proj.weight", 1, block, segments)]

    if not decoder.layout.head_width_is_free or decoder.key_heads == 1:
        coupled = "" if decoder.layout.head_width_is_free else _COUPLED
        cuts = attended(width, decoder.key_heads)
        fields: tuple[tuple[FieldPath, int], ...] = ((count, decoder.key_heads),)
        return Axis(
            attention,
            "heads",
            per_key,
            tuple(cuts),
            fields,
            _stated(decoder),
            dimension="heads",
            width=coupled,
        )
    cuts = attended(per_key * width, 1)
    for part in ("k_proj", "v_proj"):
        cuts += _written(f"{attention}.{part}", decoder.query_bias, width)
    fields = ((count, per_key), ((*text, "num_key_value_heads"), 1))
    return Axis(
        attention,
        "heads",
        decoder.key_heads,
        tuple(cuts),
        fields,
        _stated(decoder),
        dimension="heads",
    )


def _written(module: str, bias: bool, block: int = 1, segments: int = 1) -> list[Cut]:
    cuts = [Cut(f"{module}.weight", 0, block, segments)]
    return [*cuts, Cut(f"{module}.bias", 0, block, segments)] if bias else cuts


def _ffn(decoder: DecoderShape, ffn: str) -> Axis:
    if decoder.layout.fused_ffn:
        cuts = _written(f"{ffn}.gate_up_proj", decoder.ffn_bias, segments=2)
    else:
        cuts = [
            *_written(f"{ffn}.gate_proj", decoder.ffn_bias),
            *_written(f"{ffn}.up_proj", decoder.ffn_bias),
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


def _hidden(decoder: DecoderShape) -> Axis:
    """What every layer reads from and adds to."""
    root, text = decoder.layout.root, decoder.layout.text
    cuts = [Cut(f"{root}.embed_tokens.weight", 1, table=True)]
    for number in range(decoder.layers):
        layer = f"{root}.layers.{number}"
        cuts += [Cut(f"{layer}.{norm}.weight", 0, norm=True) for norm in decoder.layout.norms]
        read = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"]
        read += (
            ["mlp.gate_up_proj"] if decoder.layout.fused_ffn else ["mlp.gate_proj", "mlp.up_proj"]
        )
        cuts += [Cut(f"{layer}.{part}.weight", 1) for part in read]
        cuts += _written(f"{layer}.self_attn.o_proj", decoder.out_bias)
        cuts += _written(f"{layer}.mlp.down_proj", decoder.ffn_bias)
    cuts += [Cut(f"{root}.norm.weight", 0, norm=True), Cut(f"{LM_HEAD}.weight", 1)]
    if decoder.layout.vision is not None:
        cuts.append(Cut(f"{decoder.layout.vision}.merger.down_proj.weight", 0))
    coupled = "" if decoder.layout.head_width_is_free else _COUPLED
    field: FieldPath = (*text, "hidden_size")
    return Axis(
        root,
        "hidden",
        decoder.hidden,
        tuple(cuts),
        ((field, 1),),
        _stated(decoder),
        dimension="hidden",
        width=coupled,
    )


def _vision_axes(tree: Mapping[str, Any], vision: str) -> Iterator[Axis]:
    """Widths of ``Glm4vVisionModel`` that its class ties to the hidden width of the language model."""
    units = tree["vision_config"]["out_hidden_size"]
    sets = {
        f"{vision}.blocks.{number}.mlp": (
            *(
                Cut(f"{vision}.blocks.{number}.mlp.{part}.weight", 0)
                for part in ("gate_proj", "up_proj")
            ),
            Cut(f"{vision}.blocks.{number}.mlp.down_proj.weight", 1),
        )
        for number in range(tree["vision_config"]["depth"])
    }
    merger = f"{vision}.merger"
    sets[f"{vision}.downsample"] = (
        *weight_and_bias(f"{vision}.downsample", 0),
        Cut(f"{merger}.proj.weight", 1),
    )
    sets[f"{merger}.proj"] = (
        Cut(f"{merger}.proj.weight", 0),
        *weight_and_bias(f"{merger}.post_projection_norm", 0),
        *(Cut(f"{merger}.{part}.weight", 1) for part in ("gate_proj", "up_proj")),
    )
    field: FieldPath = ("vision_config", "out_hidden_size")
    for name, cuts in sets.items():
        yield Axis(name, "hidden", units, cuts, ((field, 1),), dimension="hidden", width=_COUPLED)
