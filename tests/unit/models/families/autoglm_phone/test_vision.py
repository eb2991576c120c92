"""Options of the vision encoders."""

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch.nn import functional

from compressor.models.families.autoglm_phone.vision import (
    MobileNet,
    TensorflowPad,
    floats_from_pixels,
)
from compressor.models.families.image_classifier.config import EFFICIENTNET_LITE0, SMALL
from compressor.models.families.image_classifier.family import ImageClassifier

FAMILY = ImageClassifier()


def test_pixels_are_centred_by_mean_and_scale():
    pixels = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(floats_from_pixels(pixels, SMALL), pixels.float() / 127.5 - 1.0)
    assert torch.equal(floats_from_pixels(pixels, EFFICIENTNET_LITE0), (pixels.float() - 127) / 128)


@pytest.mark.parametrize(
    ("kernel", "side", "zeros"), [(3, 8, (0, 1)), (5, 8, (1, 2)), (3, 7, (1, 1)), (5, 7, (2, 2))]
)
def test_tensorflow_padding_equals_same_padding(kernel, side, zeros):
    image = torch.arange(1.0, side + 1).expand(1, 1, side, side)
    row = TensorflowPad(kernel, 2)(image)[0, 0, kernel // 2]
    assert row.tolist() == np.pad(np.arange(1.0, side + 1), zeros).tolist()


@pytest.mark.parametrize("side", [15, 16])
def test_both_paddings_give_outputs_of_equal_size(side):
    image = torch.randn(1, 3, side, side)
    sizes = []
    for padding in ("even", "tensorflow"):
        encoder = MobileNet(FAMILY.slim(SMALL, vision_padding=padding))
        shapes = []
        encoder.last.register_forward_hook(
            lambda module, inputs, output, shapes=shapes: shapes.append(output.shape)
        )
        encoder(image)
        sizes += shapes
    assert sizes[0] == sizes[1]


def test_a_block_without_expansion_filters_its_input():
    block = {
        "kernel": 3,
        "expanded": 16,
        "out": 16,
        "stride": 1,
        "squeeze": False,
        "expands": False,
    }
    config = FAMILY.slim(
        SMALL, vision_blocks=[block], vision_activation="relu6", vision_norm_epsilon=0.5
    )
    (module,) = MobileNet(config).eval().blocks
    x = torch.randn(2, 16, 8, 8)
    filtered = functional.conv2d(x, module.filter.weight, padding=1, groups=16) / 1.5**0.5
    projected = functional.conv2d(filtered.clamp(0, 6), module.project.weight) / 1.5**0.5
    torch.testing.assert_close(module(x), x + projected)
    with pytest.raises(ValidationError, match="16 channels cannot become 24"):
        FAMILY.slim(config, vision_blocks=[{**block, "expanded": 24}])


def test_efficientnet_lite0_has_the_published_number_of_parameters():
    assert sum(FAMILY.parameters(EFFICIENTNET_LITE0).values()) == 4_652_008
    assert len(EFFICIENTNET_LITE0.vision_blocks) == 16
