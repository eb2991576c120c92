"""Names and experts through transformers' own mapping, for classes that store them otherwise."""

import pytest
import torch
import transformers

from compressor.models.checkpoint.stored_tensors import StoredTensors
from compressor.models.checkpoint.weight_files import read_weight_files
from compressor.models.checkpoint.weights import weights_on_meta
from compressor.models.families.transformers.conversion import Conversions

SIZES = {
    "vocab_size": 64,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}
EXPERTS = {
    "MixtralForCausalLM": transformers.MixtralConfig(**SIZES, num_local_experts=3),
    "Qwen3MoeForCausalLM": transformers.Qwen3MoeConfig(
        **SIZES, num_experts=4, moe_intermediate_size=8, head_dim=8, num_experts_per_tok=2
    ),
}


@pytest.mark.parametrize("name", EXPERTS)
def test_experts_that_are_stored_one_by_one_are_merged_as_in_from_pretrained(name, tmp_path):
    model_class, config = getattr(transformers, name), EXPERTS[name]
    torch.manual_seed(0)
    model_class(config).save_pretrained(tmp_path)
    expected = model_class.from_pretrained(tmp_path).state_dict()
    stored = StoredTensors(read_weight_files(tmp_path))
    assert stored.entries.keys() != expected.keys(), "the files hold single experts"
    with weights_on_meta():
        conversions = Conversions(model_class(config), stored.entries)
    assert not conversions.unexpected
    assert conversions.targets == expected.keys()
    shapes = {key: tensor.entry.shape for key, tensor in stored.entries.items()}
    assert conversions.shapes(shapes) == {k: tuple(v.shape) for k, v in expected.items()}
    for key, value in conversions.convert(conversions.targets, stored.read):
        assert torch.equal(value, expected[key]), key
