"""Packed checkpoints, as from_pretrained of transformers takes them."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from compressor.errors import ModelError
from compressor.models.checkpoint.loading import load_module
from compressor.models.families.transformers.packed_loading import loading_fields
from tests.support.decoders import pack_decoder, save_decoder
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


@pytest.mark.parametrize("kind", ["scales of another shape", "words of another type"])
def test_packed_tensors_that_do_not_fit_are_named_before_they_are_unpacked(tmp_path, kind):
    packed = pack_decoder(save_decoder(tmp_path / "m", "tiny-llama"), tmp_path / "packed").model
    (file, *_) = sorted(packed.glob("*.safetensors"))
    tensors = load_file(file)
    suffix = "scales" if "scales" in kind else "qzeros"
    name = next(name for name in tensors if name.endswith(suffix))
    changed = tensors[name][:1].contiguous() if suffix == "scales" else tensors[name].to(torch.int8)
    save_file({**tensors, name: changed}, file, {"format": "pt"})
    with pytest.raises(ModelError, match=f"{name}: .* in the file"):
        load_module(packed)
