"""Packed checkpoints, as from_pretrained of transformers takes them."""

import pytest

from compressor.models.families.transformers.packed_loading import loading_fields
from tests.support.encoder_classes import CLASSES
from tests.support.further_encoder_classes import FURTHER_CLASSES


@pytest.mark.parametrize(
    ("case", "refused"),
    [(FURTHER_CLASSES["dinov2_with_registers"], True), (CLASSES["bert-base"], False)],
)
def test_classes_whose_weights_are_divided_while_they_are_loaded_are_noted(case, refused):
    packing = {
        "quant_method": "compressed-tensors",
        "config_groups": {"group_0": {"weights": {"symmetric": True}}},
        "ignore": [],
    }
    fields, notes = loading_fields(case.config().to_dict(), packing)
    assert fields == packing
    assert bool(notes) == refused
    assert not notes or "divides mlp.weights_in.weight while it loads" in notes[0]


def test_a_class_with_frozen_norms_that_initializes_packed_layers_is_not_unpacked_while_read():
    packing = {
        "quant_method": "compressed-tensors",
        "config_groups": {"group_0": {"weights": {"symmetric": True}}},
        "ignore": [],
    }
    fields, notes = loading_fields(CLASSES["rt_detr"].config().to_dict(), packing)
    assert "dequantize" not in fields
    assert "normalization.weight for a packed layer" in notes[0]
