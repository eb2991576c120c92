"""Pruning of models without stated axes; their consumers load the results."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch
import transformers

from calibration.sources.arrays import ArrayDataset
from compressor.engine.contract import PassContext
from compressor.errors import RequirementError
from passes.prune.config import PruneConfig
from passes.prune.step import Prune

TEXT = {
    "vocab_size": 64,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 16,
}
CLASSES = {
    "bert": ("BertForSequenceClassification", TEXT),
    "vit": (
        "ViTForImageClassification",
        {**TEXT, "image_size": 16, "patch_size": 8, "num_attention_heads": 4},
    ),
    "gpt2": (
        "GPT2LMHeadModel",
        {"vocab_size": 64, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 16},
    ),
    "t5": (
        "T5ForConditionalGeneration",
        {"vocab_size": 64, "d_model": 16, "d_ff": 32, "d_kv": 4, "num_layers": 2, "num_heads": 4},
    ),
    "resnet": (
        "ResNetForImageClassification",
        {
            "embedding_size": 8,
            "hidden_sizes": [8, 16],
            "depths": [1, 2],
            "layer_type": "basic",
            "num_labels": 3,
        },
    ),
    "regnet": (
        "RegNetForImageClassification",
        {
            "embedding_size": 8,
            "hidden_sizes": [16, 32],
            "depths": [1, 1],
            "groups_width": 8,
            "num_labels": 3,
        },
    ),
    "pvt_v2": (
        "PvtV2ForImageClassification",
        {
            "num_encoder_blocks": 2,
            "depths": [1, 1],
            "hidden_sizes": [8, 16],
            "patch_sizes": [3, 3],
            "strides": [2, 2],
            "sr_ratios": [2, 1],
            "num_attention_heads": [1, 2],
            "mlp_ratios": [4, 4],
            "num_labels": 3,
        },
    ),
    "swin": (
        "SwinForImageClassification",
        {
            "image_size": 16,
            "patch_size": 2,
            "embed_dim": 8,
            "depths": [1, 1],
            "num_heads": [2, 2],
            "window_size": 4,
            "num_labels": 3,
        },
    ),
    "swiftformer": (
        "SwiftFormerForImageClassification",
        {"embed_dims": [8, 12, 20, 20], "depths": [1, 1, 1, 1], "mlp_ratio": 2, "num_labels": 3},
    ),
    "olmoe": (
        "OlmoeForCausalLM",
        {**TEXT, "num_experts": 4, "num_experts_per_tok": 2, "num_key_value_heads": 2},
    ),
}
TOKENS = torch.randint(3, 60, (8, 6), generator=torch.Generator().manual_seed(0))
IMAGES = torch.randn((8, 3, 16, 16), generator=torch.Generator().manual_seed(0))
INPUTS = {
    "vit": {"pixel_values": IMAGES},
    "resnet": {"pixel_values": IMAGES},
    "regnet": {"pixel_values": IMAGES},
    "pvt_v2": {"pixel_values": IMAGES},
    "swin": {"pixel_values": IMAGES},
    "swiftformer": {"pixel_values": IMAGES.repeat(1, 1, 14, 14)},
    "t5": {"input_ids": TOKENS, "decoder_input_ids": TOKENS[:, :4]},
}
EXPECTED = {
    "bert": {"intermediate_size": 16},
    "vit": {"intermediate_size": 16},
    "gpt2": {"n_inner": 32},
    "t5": {"d_ff": 16, "num_heads": 2},
    "resnet": {"hidden_sizes.1": 8},
    "regnet": {"hidden_sizes.1": 16},
    "olmoe": {"intermediate_size": 16},
}


@pytest.fixture
def prune(tmp_path):
    def run(name, **fields):
        class_name, config_fields = CLASSES[name]
        torch.manual_seed(0)
        model_class = getattr(transformers, class_name)
        module = model_class(model_class.config_class(**config_fields)).eval()
        module.save_pretrained(tmp_path / "model")
        inputs = INPUTS.get(name, {"input_ids": TOKENS})
        arrays = {key: value.numpy() for key, value in inputs.items()}
        dataset = ArrayDataset(arrays, tuple(arrays))
        (tmp_path / "work").mkdir()
        context = PassContext(
            artifacts={},
            data={"samples": dataset}.__getitem__,
            work=tmp_path / "work",
            seed=0,
            threads=1,
            device="cpu",
            artifact_id="ab12",
            progress=lambda *_: None,
            note=lambda _: None,
            cache=tmp_path / "cache",
        )
        if "calibration" not in fields:
            fields["importance"] = "magnitude"
        config = PruneConfig.model_validate_json(json.dumps(fields))
        parent = SimpleNamespace(model=tmp_path / "model", manifest=SimpleNamespace(id="ab12"))
        step = Prune()
        step.requires(config, parent, context)
        summary = step.run(config, parent, tmp_path / "out", context).summary
        pruned, info = model_class.from_pretrained(tmp_path / "out", output_loading_info=True)
        assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
        with torch.no_grad():
            pruned.eval()(**inputs)
        return pruned, module, summary

    return run


@pytest.mark.parametrize("name", EXPECTED)
def test_a_class_without_stated_axes_is_cut_by_its_config_fields(prune, name):
    pruned, module, _ = prune(name, target={"dimensions": EXPECTED[name]})
    for field, size in EXPECTED[name].items():
        key, _, index = field.partition(".")
        value = getattr(pruned.config, key)
        assert (value[int(index)] if index else value) == size
    count = sum(weight.numel() for weight in module.parameters())
    assert sum(weight.numel() for weight in pruned.parameters()) < count


def test_a_ratio_of_inner_widths_is_cut_by_whole_numbers(prune):
    pruned, _, _ = prune("pvt_v2", target={"dimensions": {"mlp_ratios.1.width": 32}})
    assert list(pruned.config.mlp_ratios) == [4, 2]
    assert pruned.pvt_v2.encoder.layers[1].blocks[0].mlp.dense1.out_features == 32


def test_a_ratio_that_is_no_integer_is_cut_by_quarters(prune):
    pruned, _, _ = prune("swin", target={"params": 0.95})
    assert pruned.config.mlp_ratio == 3.5
    widths = [stage.blocks[0].mlp.fc1.out_features for stage in pruned.swin.encoder.layers]
    assert widths == [28, 56]


def test_a_ratio_counts_widths_of_which_none_divides_the_others(prune):
    pruned, _, _ = prune("swiftformer", target={"params": 0.9}, multiple=4)
    assert pruned.config.mlp_ratio == 1


def test_layers_are_removed_by_the_samples_they_change_least(prune):
    pruned, _, summary = prune(
        "bert",
        target={"params": 0.8},
        axes=["layers"],
        calibration="samples",
        layer_importance="cosine",
    )
    assert pruned.config.num_hidden_layers == 1
    assert any(row["field"] == "num_hidden_layers" for row in summary["cuts"])


@pytest.mark.parametrize("measure", ["params", "macs"])
def test_a_target_is_met_as_the_family_counts_it(prune, measure):
    _, _, summary = prune("vit", target={measure: 0.8}, multiple=2)
    name = "parameters" if measure == "params" else "macs"
    row = next(row for row in summary["cuts"] if row["axis"] == "all" and row["field"] == name)
    assert 0.6 < row["kept"] <= 0.8


def test_groups_of_channels_count_as_the_channels_they_hold(prune):
    _, _, summary = prune("regnet", target={"params": 0.95}, axes=["channels"])
    assert any(row["field"].startswith("hidden_sizes") for row in summary["cuts"])


def test_activations_score_the_units_of_transposed_linear_layers(prune):
    pruned, _, _ = prune(
        "gpt2",
        target={"dimensions": {"n_inner": 32}},
        importance="activation",
        calibration="samples",
    )
    assert pruned.config.n_inner == 32


def test_an_unknown_dimension_is_named_with_those_of_the_model(prune):
    with pytest.raises(RequirementError, match="the model has no hidden_size") as error:
        prune("bert", target={"dimensions": {"hidden_size": 8}})
    assert "intermediate_size" in str(error.value.remedy)


def test_units_that_no_layer_takes_as_input_need_another_score(prune):
    with pytest.raises(RequirementError, match="the input of none") as error:
        prune(
            "olmoe",
            target={"dimensions": {"intermediate_size": 16}},
            importance="activation",
            calibration="samples",
        )
    assert "taylor" in str(error.value.remedy)
