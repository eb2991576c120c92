"""``image-classifier`` as the engine sees it: an image in, its class out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar, Self

from pydantic import Field, model_validator

from compressor.models.autoglm_phone import arithmetic
from compressor.models.autoglm_phone.axes import vision_axes
from compressor.models.autoglm_phone.config import Block, VisionConfig, check_vision
from compressor.models.contract import Family, InputSpec

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import nn

    from compressor.models.axes import Axis


class ClassifierConfig(VisionConfig):
    """A vision encoder and how many classes it tells apart, as saved in config.json."""

    image_size: Annotated[int, Field(ge=1)]
    """Height and width of the image in pixels."""
    num_classes: Annotated[int, Field(ge=2)]
    """Number of classes."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
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


class ImageClassifier(Family[ClassifierConfig]):
    """A CNN (MobileNetV3-style) or a vision transformer with a linear head."""

    name = "image-classifier"
    Config = ClassifierConfig
    presets: ClassVar[Mapping[str, ClassifierConfig]] = {"tiny": TINY, "small": SMALL, "small-vit": SMALL_VIT}

    def inputs(self, config: ClassifierConfig) -> tuple[InputSpec, ...]:
        """One image."""
        return (InputSpec("image", "uint8", ("batch", 3, config.image_size, config.image_size)),)

    def outputs(self, config: ClassifierConfig) -> tuple[str, ...]:  # noqa: ARG002
        """The class scores."""
        return ("logits",)

    def parameters(self, config: ClassifierConfig) -> dict[str, int]:
        """Encoder and head."""
        head = arithmetic.linear(config.vision_width, config.num_classes, 1)
        return {"vision": arithmetic.vision(config, config.image_size).parameters, "head": head.parameters}

    def macs(self, config: ClassifierConfig) -> int:
        """For one image."""
        head = arithmetic.linear(config.vision_width, config.num_classes, 1)
        return (arithmetic.vision(config, config.image_size) + head).macs

    def build(self, config: ClassifierConfig) -> nn.Module:
        """An ``ImageClassifierModel``."""
        from compressor.models.image_classifier.model import ImageClassifierModel

        return ImageClassifierModel(config)

    def axes(self, config: ClassifierConfig) -> tuple[Axis, ...]:
        """Those of the encoder."""
        return tuple(vision_axes(config, "vision", "head"))

    def features(self, config: ClassifierConfig) -> tuple[str, ...]:  # noqa: ARG002
        """The encoder's vector."""
        return ("image_vector",)
