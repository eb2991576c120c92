"""Cuttable axes of the phone model.

``tests/unit/models/capabilities/test_cuttable_axes.py`` checks that they name every dimension that
changes with a config field.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from compressor.models.capabilities.cuttable_axes import (
    Axis,
    Cut,
    FieldPath,
    batch_norm,
    weight_and_bias,
)
from compressor.models.families.autoglm_phone.vision_axes import (
    layer_axis,
    transformer_axes,
    vision_axes,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from compressor.models.families.autoglm_phone.config import PhoneConfig


def phone_axes(config: PhoneConfig) -> Iterator[Axis]:
    """Yield the axes of the whole model; the width of the shared space cannot be cut."""
    yield from vision_axes(config, "vision", "fusion.from_vision")
    yield from _speech_axes(config)
    yield layer_axis("text_encoder.layers", "encoder_layers", config.encoder_layers)
    yield layer_axis("text_decoder.layers", "decoder_layers", config.decoder_layers)
    yield layer_axis("fusion.layers", "fusion_layers", config.fusion_layers)
    for part, layers in (
        ("text_encoder", config.encoder_layers),
        ("text_decoder", config.decoder_layers),
    ):
        for number in range(layers):
            layer = f"{part}.layers.{number}"
            yield _head_axis(config, f"{layer}.attention", has_key_groups=True)
            yield _gated_ffn_axis(config, f"{layer}.ffn")
    for number in range(config.fusion_layers):
        layer = f"fusion.layers.{number}"
        yield _head_axis(config, f"{layer}.attention", has_key_groups=False)
        yield _gated_ffn_axis(config, f"{layer}.ffn")
        gate = (*weight_and_bias(f"{layer}.gate_in", 0), Cut(f"{layer}.gate_out.weight", 1))
        yield Axis(f"{layer}.gate", "ffn", config.gate, gate, ((("gate",), 1),))
    yield _hidden_axis(config)
    adapter = (*weight_and_bias("fusion.adapter_in", 0), Cut("fusion.adapter_out.weight", 1))
    yield Axis("fusion.adapter", "ffn", config.adapter, adapter, ((("adapter",), 1),))


def _speech_axes(config: PhoneConfig) -> Iterator[Axis]:
    if config.speech == "mel-cnn":
        yield from _mel_cnn_axes(config)
        return
    yield layer_axis("speech.layers", "speech_layers", config.speech_layers)
    for layer in range(config.speech_layers):
        yield from transformer_axes(
            f"speech.layers.{layer}",
            "speech",
            config.speech_heads,
            config.speech_head_width,
            config.speech_ffn,
        )


def _mel_cnn_axes(config: PhoneConfig) -> Iterator[Axis]:
    width: tuple[tuple[FieldPath, int], ...] = ((("speech_width",), 1),)

    def output_cuts(convolution: str, norm: str) -> tuple[Cut, ...]:
        return Cut(f"speech.{convolution}.weight", 0), *batch_norm(f"speech.{norm}")

    for number in (0, 1):
        cuts = (
            *output_cuts(f"down.{number}", f"down_norms.{number}"),
            Cut(f"speech.down.{number + 1}.weight", 1),
        )
        yield Axis(f"speech.down.{number}", "channels", config.speech_width, cuts, width)
    yield layer_axis("speech.residuals", "speech_layers", config.speech_layers)
    stream = (*output_cuts("down.2", "down_norms.2"), Cut("fusion.from_speech.weight", 1))
    for number in range(config.speech_layers):
        residual = f"residuals.{number}"
        stream = (
            *stream,
            Cut(f"speech.{residual}.first.weight", 1),
            *output_cuts(f"{residual}.second", f"{residual}.second_norm"),
        )
        inner = (
            *output_cuts(f"{residual}.first", f"{residual}.first_norm"),
            Cut(f"speech.{residual}.second.weight", 1),
        )
        yield Axis(f"speech.{residual}.first", "channels", config.speech_width, inner, width)
    yield Axis("speech.down.2", "channels", config.speech_width, stream, width)


def _head_axis(config: PhoneConfig, attention: str, *, has_key_groups: bool) -> Axis:
    """Return the heads of a text model's attention.

    Units are whole key groups; under multi-query attention, where all heads share one key head,
    they are single heads.
    """
    group = config.heads // config.key_heads if config.key_heads > 1 else 1
    units = config.heads // group
    query, key = group * config.head_width, config.head_width * (1 if has_key_groups else group)
    cuts = [Cut(f"{attention}.query.weight", 0, query), Cut(f"{attention}.out.weight", 1, query)]
    if not has_key_groups or config.key_heads > 1:
        cuts += [Cut(f"{attention}.{part}.weight", 0, key) for part in ("key", "value")]
    fields: tuple[tuple[FieldPath, int], ...] = ((("heads",), group),)
    if config.key_heads > 1:
        fields = (*fields, (("key_heads",), 1))
    return Axis(attention, "heads", units, tuple(cuts), fields)


def _gated_ffn_axis(config: PhoneConfig, ffn: str) -> Axis:
    cuts = (Cut(f"{ffn}.gate.weight", 0), Cut(f"{ffn}.up.weight", 0), Cut(f"{ffn}.down.weight", 1))
    return Axis(ffn, "ffn", config.ffn, cuts, ((("ffn",), 1),))


def _layer_cuts(config: PhoneConfig) -> Iterator[Cut]:
    """Yield the cuts where layers of text model and fusion read the hidden width and add to it."""
    stacks = {
        "text_encoder": (config.encoder_layers, ("attention_norm", "ffn_norm")),
        "text_decoder": (config.decoder_layers, ("attention_norm", "ffn_norm")),
        "fusion": (config.fusion_layers, ("query_norm", "context_norm", "ffn_norm")),
    }
    for part, (layers, norms) in stacks.items():
        for layer in (f"{part}.layers.{number}" for number in range(layers)):
            yield from (Cut(f"{layer}.{norm}.weight", 0, norm=True) for norm in norms)
            yield from (
                Cut(f"{layer}.attention.{name}.weight", 1) for name in ("query", "key", "value")
            )
            yield from (Cut(f"{layer}.ffn.{name}.weight", 1) for name in ("gate", "up"))
            yield from (Cut(f"{layer}.{name}.weight", 0) for name in ("attention.out", "ffn.down"))
    for layer in (f"fusion.layers.{number}" for number in range(config.fusion_layers)):
        yield Cut(f"{layer}.gate_in.weight", 1, segments=2)  # query, then screen
        yield from weight_and_bias(f"{layer}.gate_out", 0)


def _hidden_axis(config: PhoneConfig) -> Axis:
    """Return the width of the text model and of everything that is fused with it."""
    cuts = (
        Cut("text_encoder.embedding.weight", 1, table=True),
        *_layer_cuts(config),
        *(
            Cut(f"{name}.weight", 0, norm=True)
            for name in ("text_encoder.norm", "text_decoder.norm")
        ),
        *(
            cut
            for name in ("from_vision", "from_speech", "adapter_out")
            for cut in weight_and_bias(f"fusion.{name}", 0)
        ),
        Cut("fusion.adapter_norm.weight", 0, norm=True),
        Cut("fusion.pooling", 1),
        *(
            Cut(f"fusion.{name}.weight", 1)
            for name in ("adapter_in", "command_space", "cell_space")
        ),
    )
    return Axis("hidden", "hidden", config.hidden, cuts, ((("hidden",), 1),))
