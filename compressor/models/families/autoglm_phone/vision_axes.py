"""Cuttable axes of the vision encoders."""

from __future__ import annotations

from dataclasses import dataclass
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

    from compressor.models.families.autoglm_phone.config import Block, VisionConfig


def vision_axes(config: VisionConfig, prefix: str, reader: str) -> Iterator[Axis]:
    """Yield the axes of a vision encoder.

    Args:
        config: the encoder's dimensions.
        prefix: name of the encoder in the model.
        reader: name of the linear layer that reads the encoder's vector.
    """
    if config.vision == "mobilenet":
        yield from _block_axes(config, prefix)
        yield from _channel_axes(config, prefix, reader)
        return
    yield layer_axis(f"{prefix}.layers", "vision_layers", config.vision_layers)
    for layer in range(config.vision_layers):
        yield from transformer_axes(
            f"{prefix}.layers.{layer}",
            "vision",
            config.vision_heads,
            config.vision_head_width,
            config.vision_ffn,
        )


@dataclass(slots=True)
class _ResidualStream:
    """The channels between two blocks that change them: one axis, collected block by block."""

    name: str
    units: int
    cuts: tuple[Cut, ...]
    fields: tuple[FieldPath, ...]
    pinned: tuple[tuple[FieldPath, int | bool], ...] = ()

    def axis(self) -> Axis:
        fields = tuple((field, 1) for field in self.fields)
        return Axis(self.name, "channels", self.units, self.cuts, fields, self.pinned)


def _channel_axes(config: VisionConfig, prefix: str, reader: str) -> Iterator[Axis]:
    """Yield the channels of a MobileNet."""
    stream = _ResidualStream(
        f"{prefix}.stem",
        config.vision_stem,
        (Cut(f"{prefix}.stem.weight", 0), *batch_norm(f"{prefix}.stem_norm")),
        (("vision_stem",),),
    )
    for number, block in enumerate(config.vision_blocks):
        name = f"{prefix}.blocks.{number}"
        path: FieldPath = ("vision_blocks", number)
        # A block stays residual, or not, whatever the widths become.
        is_residual = block.is_residual(stream.units)
        stream.pinned = (*stream.pinned, ((*path, "residual"), is_residual))
        squeezed: tuple[tuple[FieldPath, int | bool], ...] = (
            (((*path, "squeezed"), block.squeezed_channels),) if block.squeeze else ()
        )
        if block.expands:
            stream.cuts = (*stream.cuts, Cut(f"{name}.expand.weight", 1))
            yield _expanded_axis(name, path, block, squeezed)
        else:  # the block filters the stream's own channels
            stream.cuts = (*stream.cuts, *_filter_cuts(name, block))
            stream.fields = (*stream.fields, (*path, "expanded"))
            stream.pinned = (*stream.pinned, *squeezed)
        output = (Cut(f"{name}.project.weight", 0), *batch_norm(f"{name}.project_norm"))
        if is_residual:
            stream.cuts = (*stream.cuts, *output)
            stream.fields = (*stream.fields, (*path, "out"))
        else:
            yield stream.axis()
            stream = _ResidualStream(
                f"{name}.project",
                block.out,
                output,
                ((*path, "out"),),
                (((*path, "residual"), False),),
            )
    stream.cuts = (*stream.cuts, Cut(f"{prefix}.last.weight", 1))
    yield stream.axis()
    width = (
        Cut(f"{prefix}.last.weight", 0),
        *batch_norm(f"{prefix}.last_norm"),
        Cut(f"{reader}.weight", 1),
    )
    yield Axis(f"{prefix}.last", "channels", config.vision_width, width, ((("vision_width",), 1),))


def _expanded_axis(
    name: str,
    path: FieldPath,
    block: Block,
    squeezed: tuple[tuple[FieldPath, int | bool], ...],
) -> Axis:
    """Return the channels between the two 1x1 convolutions of a block."""
    cuts = (
        Cut(f"{name}.expand.weight", 0),
        *batch_norm(f"{name}.expand_norm"),
        *_filter_cuts(name, block),
    )
    fields = (((*path, "expanded"), 1),)
    return Axis(f"{name}.expand", "channels", block.expanded, cuts, fields, squeezed)


def _block_axes(config: VisionConfig, prefix: str) -> Iterator[Axis]:
    """Yield the rows of consecutive residual blocks: all but one block of a row can be removed."""
    inputs, residual = config.vision_stem, []
    for block in config.vision_blocks:
        residual.append(block.is_residual(inputs))
        inputs = block.out
    for is_residual, numbers in groupby(range(len(residual)), residual.__getitem__):
        row = list(numbers)
        if is_residual and len(row) > 1:
            span = f"{row[0]}-{row[-1]}"
            yield Axis(
                f"{prefix}.blocks.{span}",
                "layers",
                len(row),
                (),
                (),
                stack=f"{prefix}.blocks",
                first=row[0],
                unit_entries=tuple(("vision_blocks", number) for number in row),
                dimension=f"vision_blocks.{span}",
            )


def _filter_cuts(name: str, block: Block) -> tuple[Cut, ...]:
    """Return the cuts of the channels that a block filters, without those of its expansion."""
    cuts = (
        Cut(f"{name}.filter.weight", 0),
        *batch_norm(f"{name}.filter_norm"),
        Cut(f"{name}.project.weight", 1),
    )
    if block.squeeze:
        cuts = (
            *cuts,
            Cut(f"{name}.squeeze.down.weight", 1),
            *weight_and_bias(f"{name}.squeeze.up", 0),
        )
    return cuts


def layer_axis(name: str, field: str, layers: int) -> Axis:
    """Return the layers of a module list that the config field ``field`` counts."""
    return Axis(name, "layers", layers, (), (((field,), 1),), stack=name)


def transformer_axes(
    layer: str, field: str, heads: int, head_width: int, ffn: int
) -> Iterator[Axis]:
    """Yield heads and feed-forward width of a ``blocks.TransformerLayer``.

    Args:
        layer: name of the layer.
        field: prefix of the config fields that count heads and width, such as ``vision``.
        heads: number of heads.
        head_width: width of a head.
        ffn: feed-forward width.
    """
    cuts = [
        cut
        for part in ("query", "key", "value")
        for cut in weight_and_bias(f"{layer}.attention.{part}", 0, head_width)
    ]
    cuts.append(Cut(f"{layer}.attention.out.weight", 1, head_width))
    yield Axis(f"{layer}.attention", "heads", heads, tuple(cuts), (((f"{field}_heads",), 1),))
    inner = (*weight_and_bias(f"{layer}.up", 0), Cut(f"{layer}.down.weight", 1))
    yield Axis(f"{layer}.ffn", "ffn", ffn, inner, (((f"{field}_ffn",), 1),))
