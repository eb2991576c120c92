"""Architecture of ``image-classifier`` and its presets; plain values, no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal, Self

from pydantic import Field, model_validator

from compressor.models.families.autoglm_phone.config import Block, VisionConfig, check_vision

if TYPE_CHECKING:
    from collections.abc import Iterator


class ClassifierConfig(VisionConfig):
    """A vision encoder, its image size and its classes, as saved in config.json."""

    image_size: Annotated[int, Field(ge=1)]
    """Height and width of the image in pixels."""
    num_classes: Annotated[int, Field(ge=2)]
    """Number of classes."""

    @model_validator(mode="after")
    def _check_encoder(self) -> Self:
        check_vision(self, self.image_size)
        return self


TINY = ClassifierConfig(
    vision="mobilenet",
    vision_width=8,
    vision_stem=4,
    vision_blocks=(Block(kernel=3, expanded=8, out=8, stride=2, squeeze=True),),
    image_size=16,
    num_classes=4,
)

SMALL = ClassifierConfig(
    vision="mobilenet",
    vision_width=192,
    vision_stem=16,
    vision_blocks=(
        Block(kernel=3, expanded=48, out=24, stride=2, squeeze=False),
        Block(kernel=3, expanded=96, out=24, stride=1, squeeze=False),
        Block(kernel=5, expanded=96, out=48, stride=2, squeeze=True),
        Block(kernel=5, expanded=144, out=48, stride=1, squeeze=True),
    ),
    image_size=64,
    num_classes=10,
)

SMALL_VIT = ClassifierConfig(
    vision="vit-lite",
    vision_width=128,
    vision_patch=8,
    vision_layers=4,
    vision_heads=4,
    vision_head_width=32,
    vision_ffn=256,
    image_size=64,
    num_classes=10,
)

_LITE0_ROWS = (
    (3, 1, 16, 1, 1),
    (3, 6, 24, 2, 2),
    (5, 6, 40, 2, 2),
    (3, 6, 80, 2, 3),
    (5, 6, 112, 1, 3),
    (5, 6, 192, 2, 4),
    (3, 6, 320, 1, 1),
)
"""Kernel, expansion ratio, output channels, stride of the first block, number of blocks."""


def _lite0_blocks(stem: int) -> Iterator[Block]:
    inputs = stem
    for kernel, ratio, out, stride, repeats in _LITE0_ROWS:
        for number in range(repeats):
            first: Literal[1, 2] = 2 if stride == 2 and number == 0 else 1
            yield Block(
                kernel=kernel,
                expanded=ratio * inputs,
                out=out,
                stride=first,
                squeeze=False,
                expands=ratio > 1,
            )
            inputs = out


EFFICIENTNET_LITE0 = ClassifierConfig(
    vision="mobilenet",
    vision_width=1280,
    vision_stem=32,
    vision_blocks=tuple(_lite0_blocks(32)),
    vision_activation="relu6",
    vision_padding="tensorflow",
    vision_norm_epsilon=1e-3,
    pixel_mean=127.0,
    pixel_scale=128.0,
    image_size=224,
    num_classes=1000,
)
"""EfficientNet-Lite0 (Tan & Le 2019; Liu 2020); ``examples/efficientnet/prepare.py`` downloads its
ImageNet weights."""

PRESETS = {
    "tiny": TINY,
    "small": SMALL,
    "small-vit": SMALL_VIT,
    "efficientnet-lite0": EFFICIENTNET_LITE0,
}
