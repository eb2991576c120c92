"""Family ``image-classifier``: an image in, class logits out."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from compressor.models.capabilities.cuttable_axes import CuttableAxes
from compressor.models.capabilities.feature_taps import FeatureTaps
from compressor.models.capabilities.layer_kinds import LayerKinds
from compressor.models.capabilities.linear_groups import LinearGroups
from compressor.models.capabilities.signature import InputSpec, Signature
from compressor.models.contract import CapabilityTable, Family
from compressor.models.families.autoglm_phone import arithmetic
from compressor.models.families.autoglm_phone.linear_groups import vision_blocks
from compressor.models.families.autoglm_phone.vision_axes import vision_axes
from compressor.models.families.image_classifier.config import PRESETS, ClassifierConfig

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import nn


class ImageClassifier(Family[ClassifierConfig]):
    """A CNN (MobileNetV3, EfficientNet-Lite) or a vision transformer, with a linear head."""

    name = "image-classifier"
    Config = ClassifierConfig
    presets: ClassVar[Mapping[str, ClassifierConfig]] = PRESETS

    def signature(self, config: ClassifierConfig) -> Signature:
        """Return an image as input, class logits as output."""
        shape = ("batch", 3, config.image_size, config.image_size)
        inputs = (InputSpec("image", "uint8", shape),)
        return Signature(inputs, ("logits",), classes=config.num_classes)

    def parameters(self, config: ClassifierConfig) -> dict[str, int]:
        """Return the parameters of encoder and head."""
        head = arithmetic.linear(config.vision_width, config.num_classes, 1)
        return {
            "vision": arithmetic.vision(config, config.image_size).parameters,
            "head": head.parameters,
        }

    def macs(self, config: ClassifierConfig) -> int:
        """Return the multiply-accumulates of one image."""
        head = arithmetic.linear(config.vision_width, config.num_classes, 1)
        return (arithmetic.vision(config, config.image_size) + head).macs

    def build(self, config: ClassifierConfig) -> nn.Module:
        """Return an ``ImageClassifierModel``."""
        from compressor.models.families.image_classifier.model import ImageClassifierModel

        return ImageClassifierModel(config)

    def capabilities(self, config: ClassifierConfig) -> CapabilityTable:
        """Return the axes and linear groups of encoder and head, and the encoder's vector."""
        return {
            CuttableAxes: lambda: CuttableAxes(tuple(vision_axes(config, "vision", "head"))),
            LinearGroups: lambda: LinearGroups(tuple(vision_blocks(config, "vision", "head"))),
            FeatureTaps: lambda: FeatureTaps(("image_vector",)),
            LayerKinds: lambda: LayerKinds(config.vision == "mobilenet", embedding_tables=False),
        }
