"""Classes of transformers without a row in the tables: what building them tells."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from compressor.errors import ModelError
from compressor.models.checkpoint.description import read_description
from compressor.models.checkpoint.loading import load_module
from compressor.models.families.transformers.computed_tensors import computed_tensors
from compressor.models.families.transformers.generic import description as class_description
from compressor.models.families.transformers.generic.description import describe
from compressor.models.families.transformers.generic.sample import sample_batch
from compressor.models.families.transformers.modules import build_on_meta
from tests.support.decoder_classes import write_decoder
from tests.support.encoder_classes import CLASSES
from tests.support.further_encoder_classes import FURTHER_CLASSES
from tests.support.mixtures import mixture

_SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "vocab_size": 64,
}


def _tree(class_name: str, model_type: str, **fields: Any) -> dict[str, Any]:
    return {"model_type": model_type, "architectures": [class_name], **_SIZES, **fields}


def _inputs(tree: dict[str, Any]) -> dict[str, tuple[Any, ...]]:
    return {spec.name: spec.shape for spec in describe(tree).signature.inputs}


@pytest.mark.parametrize(
    ("class_name", "model_type", "task", "outputs", "unit"),
    [
        ("BertForMaskedLM", "bert", "masked-lm", ("logits",), "sample"),
        ("BertForTokenClassification", "bert", "token-classification", ("logits",), "sample"),
        (
            "BertForQuestionAnswering",
            "bert",
            "question-answering",
            ("start_logits", "end_logits"),
            "sample",
        ),
        ("BertModel", "bert", "text-embedding", ("last_hidden_state", "pooler_output"), "sample"),
        ("LlamaModel", "llama", "text-embedding", ("last_hidden_state",), "sample"),
        (
            "LlamaForSequenceClassification",
            "llama",
            "sequence-classification",
            ("logits",),
            "sample",
        ),
        ("GPTNeoXForCausalLM", "gpt_neox", "causal-lm", ("logits",), "token"),
        ("ViTForImageClassification", "vit", "image-classification", ("logits",), "sample"),
        ("ViTModel", "vit", "image-embedding", ("last_hidden_state", "pooler_output"), "sample"),
    ],
)
def test_the_task_decides_outputs_and_unit(class_name, model_type, task, outputs, unit):
    description = describe(_tree(class_name, model_type))
    assert description.task.name == task
    assert description.signature.outputs == outputs
    assert description.signature.unit == unit


def test_a_language_model_takes_windows_and_an_encoder_masked_texts():
    assert list(_inputs(_tree("GPTNeoXForCausalLM", "gpt_neox"))) == ["input_ids"]
    assert list(_inputs(_tree("BertModel", "bert"))) == [
        "input_ids",
        "attention_mask",
        "token_type_ids",
    ]
    without_types = _tree("RobertaModel", "roberta", type_vocab_size=1)
    assert list(_inputs(without_types)) == ["input_ids", "attention_mask"]


def test_positions_that_stand_for_padding_are_not_counted():
    tree = _tree("RobertaModel", "roberta", max_position_embeddings=40, pad_token_id=1)
    (tokens, _, _) = describe(tree).signature.inputs
    assert tokens.longest == 38
    module = transformers.RobertaModel(transformers.RobertaConfig(**tree)).eval()
    module(torch.full((1, 38), 5))
    with pytest.raises((IndexError, RuntimeError)):
        module(torch.full((1, 39), 5))


def test_a_decoder_that_reads_the_position_behind_its_last_token_takes_one_token_less():
    config = transformers.ProphetNetConfig(
        vocab_size=64,
        hidden_size=32,
        encoder_ffn_dim=48,
        decoder_ffn_dim=48,
        num_encoder_layers=1,
        num_decoder_layers=1,
        num_encoder_attention_heads=2,
        num_decoder_attention_heads=2,
        max_position_embeddings=40,
    )
    name = "ProphetNetForConditionalGeneration"
    inputs = describe({**config.to_dict(), "architectures": [name]}).signature.inputs
    module = getattr(transformers, name)(config).eval()
    module(**sample_batch(inputs, tokens=40))
    longest = {spec.name: spec.longest for spec in inputs}
    assert (longest["input_ids"], longest["decoder_input_ids"]) == (39, 38)
    with pytest.raises(IndexError):
        module(input_ids=torch.full((1, 4), 5), decoder_input_ids=torch.full((1, 39), 5))


@pytest.mark.parametrize(
    ("fields", "shape"),
    [
        ({"image_size": 32}, ("batch", 3, 32, 32)),
        ({"image_size": [48, 32], "patch_size": 16}, ("batch", 3, 48, 32)),
        ({"image_size": 32, "num_channels": 1}, ("batch", 1, 32, 32)),
    ],
)
def test_sizes_of_images_are_those_of_the_config(fields, shape):
    assert _inputs(_tree("ViTModel", "vit", **fields))["pixel_values"] == shape


def test_sizes_that_no_config_fixes_are_variable():
    tree = {"model_type": "resnet", "architectures": ["ResNetModel"], "depths": [1, 1, 1, 1]}
    assert _inputs(tree)["pixel_values"] == ("batch", 3, "height", "width")


@pytest.mark.parametrize(
    ("name", "task", "input_name", "shape", "outputs"),
    [
        ("bert-choice", "multiple-choice", "input_ids", ("batch", "choices", "tokens"), "logits"),
        (
            "t5-base",
            "text-embedding",
            "decoder_input_ids",
            ("batch", "decoder_tokens"),
            "last_hidden_state",
        ),
        ("wav2vec2-bert", "ctc", "input_features", ("batch", "frames", 16), "logits"),
        ("clap", "text-embedding", "input_features", ("batch", 1, "frames", 16), "text_embeds"),
        ("encodec", "audio-embedding", "input_values", ("batch", 1, "samples"), "audio_values"),
        ("timesformer", "video-classification", "pixel_values", ("batch", 4, 3, 32, 32), "logits"),
        ("vilt", "visual-question-answering", "pixel_values", ("batch", 3, 32, 32), "logits"),
        ("blip", "image-text", "pixel_values", ("batch", 3, 32, 32), "logits"),
        (
            "owlvit",
            "zero-shot-object-detection",
            "pixel_values",
            ("batch", 3, 32, 32),
            "pred_boxes",
        ),
    ],
)
def test_a_class_takes_the_inputs_that_it_runs_on(name, task, input_name, shape, outputs):
    description = describe(FURTHER_CLASSES[name].config().to_dict())
    assert description.task.name == task
    inputs = {spec.name: spec for spec in description.signature.inputs}
    assert (inputs[input_name].shape, inputs[input_name].optional) == (shape, False)
    assert outputs in description.signature.outputs
    assert description.macs > 0


@pytest.mark.parametrize(("norm", "masked"), [("layer", True), ("group", False)])
def test_encoders_of_recordings_take_masks_if_they_were_trained_with_them(norm, masked):
    fields = {"feat_extract_norm": norm, "do_stable_layer_norm": norm == "layer"}
    tree = {**CLASSES["wav2vec2"].config().to_dict(), "architectures": ["Wav2Vec2ForCTC"], **fields}
    expected = {"attention_mask": ("batch", "samples")} if masked else {}
    assert _inputs(tree) == {"input_values": ("batch", "samples")} | expected


def test_a_class_whose_library_is_not_installed_is_named(monkeypatch):
    def needs_scipy(*_):
        raise ImportError("the loss requires scipy\n  pip install scipy")

    monkeypatch.setattr(transformers.ViTModel, "__init__", needs_scipy)
    with pytest.raises(
        ModelError, match=r"ViTModel needs a library .* requires scipy pip"
    ) as error:
        build_on_meta(_tree("ViTModel", "vit", hidden_size=48))
    assert error.value.remedy == "install the library that it names"


def test_recordings_of_one_length_need_no_masks():
    tree = FURTHER_CLASSES["audio-spectrogram-transformer"].config().to_dict()
    assert _inputs(tree) == {"input_values": ("batch", 32, 16)}


def test_an_input_whose_shape_does_not_follow_from_the_config_is_named():
    tree = {"model_type": "informer", "architectures": ["InformerForPrediction"]}
    with pytest.raises(ModelError, match="requires the input past_time_features") as error:
        describe({**tree, "prediction_length": 4})
    assert "inputs:" in error.value.remedy


def test_parameters_count_tied_weights_once_and_macs_the_products_of_one_token():
    fields = {
        "model_type": "gpt2",
        "architectures": ["GPT2LMHeadModel"],
        "n_embd": 32,
        "n_layer": 1,
        "n_head": 2,
        "n_positions": 16,
        "vocab_size": 64,
    }
    description = describe(fields)
    module = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(n_embd=32, n_layer=1, n_head=2, n_positions=16, vocab_size=64)
    )
    assert sum(description.parameters.values()) == module.num_parameters()
    linears = 32 * 96 + 32 * 32 + 2 * 32 * 128
    assert description.macs == linears + 64 * 32


def test_describing_leaves_the_random_state_as_it_was():
    torch.manual_seed(3)
    before = torch.get_rng_state()
    describe(_tree("BertForMaskedLM", "bert", vocab_size=65))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    "name", ["bert", "t5", "marian", "vit", "clip", "detr", "wav2vec2", "resnet", "albert"]
)
def test_a_stored_class_opens_as_from_pretrained_does(tmp_path, name):
    CLASSES[name].build().save_pretrained(tmp_path)
    model = read_description(tmp_path)
    module = load_module(model)
    expected = getattr(transformers, CLASSES[name].class_name).from_pretrained(tmp_path).eval()
    batch = sample_batch(model.signature.inputs)
    with torch.no_grad():
        actual, reference = module(**batch), expected(**batch)
    for output in model.signature.outputs:
        assert torch.equal(actual[output], reference[output])


def test_positions_that_no_file_holds_are_computed_and_random_weights_are_not(tmp_path):
    CLASSES["marian"].build().save_pretrained(tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    name = "model.encoder.embed_positions.weight"
    assert name not in stored
    model = load_module(tmp_path)
    expected = transformers.MarianMTModel.from_pretrained(tmp_path)
    assert torch.equal(model.get_parameter(name), expected.get_parameter(name))
    module = build_on_meta({**read_description(tmp_path).config.tree})
    module._keys_to_ignore_on_load_missing = ["model.shared.weight"]
    assert computed_tensors(module, ["model.shared.weight"]) == {}


def _store(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> Path:
    CLASSES["bert-mlm"].build().save_pretrained(folder)
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


def test_tensors_of_another_head_are_noted_and_not_used(tmp_path):
    folder = _store(tmp_path, lambda tensors: tensors.update({"cls.seq.weight": torch.ones(2, 2)}))
    (note,) = read_description(folder).notes
    assert "BertForMaskedLM does not use these stored tensors" in note
    assert "cls.seq.weight" in note


def test_layers_beyond_the_config_are_refused(tmp_path):
    CLASSES["bert-mlm"].build().save_pretrained(tmp_path)
    tree = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**tree, "num_hidden_layers": 1}))
    with pytest.raises(ModelError, match=r"unexpected: bert\.encoder\.layer\.1\."):
        read_description(tmp_path)


def test_every_missing_and_misshapen_tensor_is_named(tmp_path):
    name = "bert.encoder.layer.0.output.dense"

    def change(tensors: dict[str, torch.Tensor]) -> None:
        del tensors[f"{name}.bias"]
        tensors[f"{name}.weight"] = torch.ones(3, 3)

    folder = _store(tmp_path, change)
    with pytest.raises(ModelError) as error:
        read_description(folder)
    assert f"missing: {name}.bias" in str(error.value)
    assert f"{name}.weight: [3, 3] in the file" in str(error.value)


def test_a_tied_head_that_is_stored_with_other_values_is_untied(tmp_path):
    write_decoder(tmp_path, "gpt2")
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["lm_head.weight"] = head = torch.randn(320, 64)
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    model = read_description(tmp_path)
    assert "differ: both are used" in model.notes[0]
    module = load_module(model)
    assert torch.equal(module.lm_head.weight, head)
    assert torch.equal(module.transformer.wte.weight, tensors["transformer.wte.weight"])


def test_macs_of_a_mixture_are_those_of_the_experts_of_one_token(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = mixture("MixtralForCausalLM")
    tree = json.loads(model.config.to_json_string()) | {"architectures": ["MixtralForCausalLM"]}
    experts = 2 * 2 * 3 * 32 * 64
    attention = 2 * (2 * 32 * 32 + 2 * 32 * 16)
    macs = experts + attention + 2 * 4 * 32 + 96 * 32
    assert describe(tree).macs == macs
    # Classes that are too large to be run are counted without weights.
    monkeypatch.setattr(class_description, "_MOST_PARAMETERS_TO_RUN", 0)
    scores = 2 * 2 * 32
    assert describe({**tree, "transformers_version": "0"}).macs == macs + scores


def test_a_class_that_runs_on_no_known_inputs_is_refused(monkeypatch):
    with pytest.raises(ModelError, match="requires the input flattened_patches") as caught:
        describe(_further("pix2struct"))
    assert "describe its inputs" in str(caught.value)

    def refuse(*_: Any, input_ids: Any, attention_mask: Any) -> None:
        raise ValueError("a table is missing")

    monkeypatch.setattr(transformers.BertModel, "forward", refuse)
    with pytest.raises(ModelError, match=r"does not run on .*input_ids .*: ValueError: a table"):
        describe(_tree("BertModel", "bert", vocab_size=63))


def test_a_class_that_reads_the_last_token_of_a_text_is_described():
    description = describe(_further("bart-class"))
    assert description.signature.outputs == ("logits",)
    assert description.macs > 0


def _further(name: str) -> dict[str, Any]:
    case = FURTHER_CLASSES[name]
    return {**case.config().to_dict(), "architectures": [case.class_name]}


def test_texts_end_with_the_token_that_a_class_looks_for():
    description = describe(FURTHER_CLASSES["bart-class"].config().to_dict())
    (tokens,) = (spec for spec in description.signature.inputs if spec.name == "input_ids")
    assert tokens.last == 2
    batch = sample_batch(description.signature.inputs)
    is_end = batch["input_ids"] == tokens.last
    assert is_end[:, -1].all()
    assert not is_end[:, :-1].any()


def test_a_large_detector_that_was_not_run_has_its_boxes(monkeypatch):
    monkeypatch.setattr(class_description, "_MOST_PARAMETERS_TO_RUN", 0)
    refused = ValueError("it reads values")
    monkeypatch.setattr(class_description, "_first_that_runs", lambda *_: refused)
    tree = {**CLASSES["rt_detr"].config().to_dict(), "transformers_version": "0"}
    description = describe(tree)
    assert description.macs == 0
    assert description.signature.outputs == ("logits", "pred_boxes")


def test_recordings_of_any_length_have_a_mask():
    for name in ("moonshine", "speech_to_text"):
        assert "attention_mask" in [spec.name for spec in describe(_further(name)).signature.inputs]
    inputs = describe(CLASSES["whisper"].config().to_dict()).signature.inputs
    assert "attention_mask" not in [spec.name for spec in inputs]


def test_a_large_class_that_was_not_run_is_noted(tmp_path, monkeypatch):
    """BART's classifier looks for the ends of texts, which tensors without values do not show."""
    FURTHER_CLASSES["bart-class"].build().save_pretrained(tmp_path)
    assert not any("was not run" in note for note in read_description(tmp_path).notes)
    monkeypatch.setattr(class_description, "_MOST_PARAMETERS_TO_RUN", 0)
    class_description._describe.cache_clear()
    notes = read_description(tmp_path).notes
    class_description._describe.cache_clear()
    assert any("was not run" in note for note in notes)
