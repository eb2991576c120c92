"""Module of ``image-classifier``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn

from compressor.models.families.autoglm_phone.vision import floats_from_pixels, vision_encoder

if TYPE_CHECKING:
    from compressor.models.families.image_classifier.config import ClassifierConfig


class ImageClassifierModel(nn.Module):
    """A vision encoder of the reference model with a linear head."""

    def __init__(self, config: ClassifierConfig) -> None:
        super().__init__()
        self.config = config
        self.vision = vision_encoder(config, config.image_size)
        self.head = nn.Linear(config.vision_width, config.num_classes)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """Map uint8 images [B, 3, S, S] to ``logits`` [B, classes] and ``image_vector``.

        ``image_vector`` [B, vision_width] is the input of the head.
        """
        vector = self.vision(floats_from_pixels(image, self.config))
        return {"logits": self.head(vector), "image_vector": vector}
