"""The axes of the phone model and of its encoders.

``tests/unit/models/test_axes.py`` holds them to name every dimension that a field moves.
"""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING

from compressor.models.capabilities.cuttable_axes import (
    Axis,
    Cut,
    FieldPath,
    batch_norm,
    weight_and_bias,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from compressor.models.families.autoglm_phone.config import Block, PhoneConfig, VisionConfig


def vision_axes(config: VisionConfig, prefix: str, reader: str) -> Iterator[Axis]:
    """Of a vision encoder whose vector is read by the linear layer ``reader``."""
    if config.vision == "vit-lite":
        yield _stack(f"{prefix}.layers", "vision_layers", config.vision_layers)
        for layer in range(config.vision_layers):
            yield from _transformer_axes(
                f"{prefix}.layers.{layer}",
                "vision",
                config.vision_heads,
                config.vision_head_width,
                config.vision_ffn,
            )
        return
    yield from _stages(config, prefix)
    cuts: tuple[Cut, ...] = (Cut(f"{prefix}.stem.weight", 0), *batch_norm(f"{prefix}.stem_norm"))
    fields: tuple[FieldPath, ...] = (("vision_stem",),)
    name, units = f"{prefix}.stem", config.vision_stem
    stated: tuple[tuple[FieldPath, int | bool], ...] = ()
    for number, block in enumerate(config.vision_blocks):
        here = f"{prefix}.blocks.{number}"
        place: FieldPath = ("vision_blocks", number)
        # What is added to its input stays added, and what is not never starts to be, whatever the widths become.
        stated = (*stated, ((*place, "residual"), block.is_residual(units)))
        expanded = _filtered(here, block)
        fixed: tuple[tuple[FieldPath, int | bool], ...] = (
            (((*place, "squeezed"), block.squeezed_channels),) if block.squeeze else ()
        )
        if block.expands:
            cuts = (*cuts, Cut(f"{here}.expand.weight", 1))
            expanded = (
                Cut(f"{here}.expand.weight", 0),
                *batch_norm(f"{here}.expand_norm"),
                *expanded,
            )
            yield Axis(
                f"{here}.expand",
                "channels",
                block.expanded,
                expanded,
                (((*place, "expanded"), 1),),
                fixed,
            )
        else:
            cuts, fields, stated = (
                (*cuts, *expanded),
                (*fields, (*place, "expanded")),
                (*stated, *fixed),
            )
        written = (Cut(f"{here}.project.weight", 0), *batch_norm(f"{here}.project_norm"))
        if block.is_residual(units):
            cuts, fields = (*cuts, *written), (*fields, (*place, "out"))
        else:
            yield Axis(name, "channels", units, cuts, tuple((field, 1) for field in fields), stated)
            cuts, fields, stated = written, ((*place, "out"),), (((*place, "residual"), False),)
            name, units = f"{here}.project", block.out
    cuts = (*cuts, Cut(f"{prefix}.last.weight", 1))
    yield Axis(name, "channels", units, cuts, tuple((field, 1) for field in fields), stated)
    width = (
        Cut(f"{prefix}.last.weight", 0),
        *batch_norm(f"{prefix}.last_norm"),
        Cut(f"{reader}.weight", 1),
    )
    yield Axis(f"{prefix}.last", "channels", config.vision_width, width, ((("vision_width",), 1),))


def _stages(config: VisionConfig, prefix: str) -> Iterator[Axis]:
    """Residual blocks in a row: what goes through one keeps its shape, so all but one of them can be left out."""
    inputs, residual = config.vision_stem, []
    for block in config.vision_blocks:
        residual.append(block.is_residual(inputs))
        inputs = block.out
    for skips, numbers in groupby(range(len(residual)), residual.__getitem__):
        row = list(numbers)
        if skips and len(row) > 1:
            place = f"{row[0]}-{row[-1]}"
            entries = tuple(("vision_blocks", number) for number in row)
            yield Axis(
                f"{prefix}.blocks.{place}",
                "layers",
                len(row),
                (),
                (),
                stack=f"{prefix}.blocks",
                first=row[0],
                unit_entries=entries,
                dimension=f"vision_blocks.{place}",
            )


def _filtered(here: str, block: Block) -> tuple[Cut, ...]:
    """Where a block holds the channels that it filters, beside what expands them."""
    cuts = (
        Cut(f"{here}.filter.weight", 0),
        *batch_norm(f"{here}.filter_norm"),
        Cut(f"{here}.project.weight", 1),
    )
    if block.squeeze:
        cuts = (
            *cuts,
            Cut(f"{here}.squeeze.down.weight", 1),
            *weight_and_bias(f"{here}.squeeze.up", 0),
        )
    return cuts


def _stack(name: str, field: str, layers: int) -> Axis:
    return Axis(name, "layers", layers, (), (((field,), 1),), stack=name)


def _transformer_axes(
    layer: str, field: str, heads: int, head_width: int, ffn: int
) -> Iterator[Axis]:
    """Of ``blocks.TransformerLayer``."""
    written = [
        cut
        for part in ("query", "key", "value")
        for cut in weight_and_bias(f"{layer}.attention.{part}", 0, head_width)
    ]
    read = Cut(f"{layer}.attention.out.weight", 1, head_width)
    yield Axis(f"{layer}.attention", "heads", heads, (*written, read), (((f"{field}_heads",), 1),))
    inner = (*weight_and_bias(f"{layer}.up", 0), Cut(f"{layer}.down.weight", 1))
    yield Axis(f"{layer}.ffn", "ffn", ffn, inner, (((f"{field}_ffn",), 1),))


def _speech_axes(config: PhoneConfig) -> Iterator[Axis]:
    if config.speech == "wav2vec-bridge":
        yield _stack("speech.layers", "speech_layers", config.speech_layers)
        for layer in range(config.speech_layers):
            yield from _transformer_axes(
                f"speech.layers.{layer}",
                "speech",
                config.speech_heads,
                config.speech_head_width,
                config.speech_ffn,
            )
        return
    width: tuple[tuple[FieldPath, int], ...] = ((("speech_width",), 1),)

    def written(convolution: str, norm: str) -> tuple[Cut, ...]:
        return Cut(f"speech.{convolution}.weight", 0), *batch_norm(f"speech.{norm}")

    for number in (0, 1):
        cuts = (
            *written(f"down.{number}", f"down_norms.{number}"),
            Cut(f"speech.down.{number + 1}.weight", 1),
        )
        yield Axis(f"speech.down.{number}", "channels", config.speech_width, cuts, width)
    yield _stack("speech.residuals", "speech_layers", config.speech_layers)
    stream = (*written("down.2", "down_norms.2"), Cut("fusion.from_speech.weight", 1))
    for number in range(config.speech_layers):
        here = f"residuals.{number}"
        stream = (
            *stream,
            Cut(f"speech.{here}.first.weight", 1),
            *written(f"{here}.second", f"{here}.second_norm"),
        )
        inner = (
            *written(f"{here}.first", f"{here}.first_norm"),
            Cut(f"speech.{here}.second.weight", 1),
        )
        yield Axis(f"speech.{here}.first", "channels", config.speech_width, inner, width)
    yield Axis("speech.down.2", "channels", config.speech_width, stream, width)


def _head_axis(config: PhoneConfig, attention: str, *, grouped: bool) -> Axis:
    """Whole key groups go; under multi-query attention, where all heads share one key head, single heads."""
    group = config.heads // config.key_heads if config.key_heads > 1 else 1
    units = config.heads // group
    query, key = group * config.head_width, config.head_width * (1 if grouped else group)
    cuts = [Cut(f"{attention}.query.weight", 0, query), Cut(f"{attention}.out.weight", 1, query)]
    if not grouped or config.key_heads > 1:
        cuts += [Cut(f"{attention}.{part}.weight", 0, key) for part in ("key", "value")]
    fields: tuple[tuple[FieldPath, int], ...] = ((("heads",), group),)
    if config.key_heads > 1:
        fields = (*fields, (("key_heads",), 1))
    return Axis(attention, "heads", units, tuple(cuts), fields)


def _gated_ffn_axis(config: PhoneConfig, ffn: str) -> Axis:
    cuts = (Cut(f"{ffn}.gate.weight", 0), Cut(f"{ffn}.up.weight", 0), Cut(f"{ffn}.down.weight", 1))
    return Axis(ffn, "ffn", config.ffn, cuts, ((("ffn",), 1),))


def _reads_and_writes(config: PhoneConfig) -> Iterator[Cut]:
    """Where the text model's layers, and those of fusion, read the hidden width and add to it."""
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
        yield Cut(f"{layer}.gate_in.weight", 1, segments=2)  # of the query, then of the screen
        yield from weight_and_bias(f"{layer}.gate_out", 0)


def _hidden_axis(config: PhoneConfig) -> Axis:
    """The width of the text model, and of all that is fused with it."""
    cuts = (
        Cut("text_encoder.embedding.weight", 1, table=True),
        *_reads_and_writes(config),
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


def phone_axes(config: PhoneConfig) -> Iterator[Axis]:
    """Of the whole model. The width of the shared space stays as it is."""
    yield from vision_axes(config, "vision", "fusion.from_vision")
    yield from _speech_axes(config)
    yield _stack("text_encoder.layers", "encoder_layers", config.encoder_layers)
    yield _stack("text_decoder.layers", "decoder_layers", config.decoder_layers)
    yield _stack("fusion.layers", "fusion_layers", config.fusion_layers)
    for part, layers in (
        ("text_encoder", config.encoder_layers),
        ("text_decoder", config.decoder_layers),
    ):
        for number in range(layers):
            yield _head_axis(config, f"{part}.layers.{number}.attention", grouped=True)
            yield _gated_ffn_axis(config, f"{part}.layers.{number}.ffn")
    for number in range(config.fusion_layers):
        here = f"fusion.layers.{number}"
        yield _head_axis(config, f"{here}.attention", grouped=False)
        yield _gated_ffn_axis(config, f"{here}.ffn")
        gate = (*weight_and_bias(f"{here}.gate_in", 0), Cut(f"{here}.gate_out.weight", 1))
        yield Axis(f"{here}.gate", "ffn", config.gate, gate, ((("gate",), 1),))
    yield _hidden_axis(config)
    adapter = (*weight_and_bias("fusion.adapter_in", 0), Cut("fusion.adapter_out.weight", 1))
    yield Axis("fusion.adapter", "ffn", config.adapter, adapter, ((("adapter",), 1),))
