"""Model folders: reproducible bytes, strict checks, and errors that name every problem."""

import json
import os

import numpy as np
import pytest
import safetensors.torch
import torch

from compressor.config.discovery import FAMILIES, load
from compressor.errors import ModelError, NumericalError
from compressor.models.checkpoint.companions import model_files
from compressor.models.checkpoint.description import read_description
from compressor.models.checkpoint.finite import check_finite
from compressor.models.checkpoint.loading import load_module
from compressor.models.facts import facts_of
from tests.support.decoders import save_decoder

FAMILY = load(FAMILIES, "autoglm-phone")
CONFIG = FAMILY.presets["tiny"]


@pytest.fixture
def folder(tmp_path):
    torch.manual_seed(0)
    FAMILY.save(FAMILY.build(CONFIG), CONFIG, tmp_path / "model")
    return tmp_path / "model"


def rewrite(folder, change):
    tensors = safetensors.torch.load_file(folder / "model.safetensors")
    change(tensors)
    safetensors.torch.save_file(tensors, folder / "model.safetensors")


def test_equal_weights_give_equal_bytes(folder, tmp_path):
    FAMILY.save(load_module(folder), CONFIG, tmp_path / "again")
    for file in folder.iterdir():
        assert file.read_bytes() == (tmp_path / "again" / file.name).read_bytes()


def test_description_and_facts_are_read_without_the_weights(folder):
    description = read_description(folder)
    assert description.family.name == FAMILY.name
    assert (description.config, description.folder) == (CONFIG, folder)
    facts = facts_of(folder)
    assert facts.parameters == sum(FAMILY.parameters(CONFIG).values())
    assert facts.size_bytes == sum(file.stat().st_size for file in folder.iterdir())


def test_loading_restores_the_weights_and_keeps_the_state_of_the_generator(folder):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    module = load_module(folder)
    assert torch.equal(torch.rand(3), expected)
    assert not module.training
    stored = safetensors.torch.load_file(folder / "model.safetensors")
    assert all(torch.equal(value, stored[name]) for name, value in module.state_dict().items())


class Tied(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.out = torch.nn.Linear(4, 7, bias=False)
        self.embedding = torch.nn.Embedding(7, 4)
        self.out.weight = self.embedding.weight
        self.register_buffer("view", torch.arange(12.0).reshape(3, 4).T[1:])


def test_tied_weights_are_saved_once_and_stay_tied(tmp_path, monkeypatch, folder):
    monkeypatch.setattr(type(FAMILY), "build", lambda *_: Tied())
    tied = Tied()
    FAMILY.save(tied, CONFIG, folder)
    assert safetensors.torch.load_file(folder / "model.safetensors").keys() == {
        "embedding.weight",
        "view",
    }
    module = load_module(folder)
    assert module.out.weight is module.embedding.weight
    assert torch.equal(module.out.weight, tied.out.weight)
    assert torch.equal(module.view, tied.view)


def test_loaded_weights_keep_half_precision(folder):
    def halve(tensors):
        tensors |= {name: v.half() for name, v in tensors.items() if v.is_floating_point()}

    rewrite(folder, halve)
    assert {value.dtype for value in load_module(folder).parameters()} == {torch.float16}


def test_every_tensor_that_does_not_fit_is_named(folder):
    def change(tensors):
        names = sorted(tensors)
        del tensors[names[0]]
        tensors[names[1]] = torch.zeros(2, 3, 4)
        tensors["stray"] = torch.zeros(1)

    names = sorted(safetensors.torch.load_file(folder / "model.safetensors"))
    rewrite(folder, change)
    with pytest.raises(ModelError) as raised:
        load_module(folder)
    for line in (
        f"missing: {names[0]}",
        f"{names[1]}: float32 [2, 3, 4] in the file",
        "unexpected: stray",
    ):
        assert line in raised.value.what


def test_every_problem_of_a_folder_is_reported_at_once(tmp_path):
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    (tmp_path / "extra.pt").write_bytes(b"")
    with pytest.raises(ModelError) as raised:
        read_description(tmp_path)
    assert str(tmp_path) in raised.value.what
    for line in ("the weights are pickled (pytorch_model.bin)", "config.json is missing"):
        assert line in raised.value.what
    assert "autoglm-compress convert" in raised.value.remedy


@pytest.mark.parametrize("name", ["optimizer.pt", "training_args.bin", "pytorch_model.bin"])
def test_pickles_beside_safetensors_are_not_read(folder, name):
    expected = load_module(folder).state_dict()
    (folder / name).write_bytes(b"not a pickle")
    state = load_module(folder).state_dict()
    assert all(torch.equal(value, expected[key]) for key, value in state.items())
    assert folder / name not in model_files(folder)


def test_weights_without_a_standard_name_are_not_guessed(folder):
    (folder / "model.safetensors").rename(folder / "model.fp16.safetensors")
    with pytest.raises(ModelError, match=r"nothing states that model\.fp16\.safetensors hold"):
        read_description(folder)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "config.json is not valid JSON"),
        ("[]", "is neither {"),
        ('{"model_type": "llama"}', "no positive numbers: num_hidden_layers"),
        (
            '{"family": "autoglm-phon"}',
            "unknown family 'autoglm-phon'(.|\n)*did you mean 'autoglm-phone'",
        ),
    ],
)
def test_invalid_descriptions_are_refused(folder, content, message):
    (folder / "config.json").write_text(content)
    with pytest.raises(ModelError, match=message):
        read_description(folder)


def test_every_invalid_field_of_a_config_is_named(folder):
    description = json.loads((folder / "config.json").read_text())
    description["config"] |= {"hidden": "7", "colour": "red"}
    (folder / "config.json").write_text(json.dumps(description))
    with pytest.raises(ModelError) as raised:
        read_description(folder)
    assert "config.json: hidden: " in raised.value.what
    assert "config.json: colour: " in raised.value.what


@pytest.mark.parametrize("keep", [0, 4, 40, 2000, -1])
def test_truncated_weights_are_refused(folder, keep):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(ModelError, match="truncated"):
        read_description(folder)
    with pytest.raises(ModelError, match="truncated"):
        check_finite(folder)


def test_a_damaged_header_is_refused(folder):
    (folder / "model.safetensors").write_bytes((4).to_bytes(8, "little") + b"oops")
    with pytest.raises(ModelError, match="its header is damaged"):
        read_description(folder)


FLOATS = [
    torch.float64,
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.float8_e5m2,
    torch.float8_e4m3fn,
]


@pytest.mark.parametrize("dtype", FLOATS)
def test_nan_and_infinity_are_found_in_every_float_dtype(tmp_path, dtype):
    finite = torch.tensor(
        [0.0, -1.5, torch.finfo(dtype).max, torch.finfo(dtype).min, torch.finfo(dtype).tiny],
        dtype=torch.float64,
    )
    bad = [float("nan")]
    if dtype != torch.float8_e4m3fn:
        bad += [float("inf"), -float("inf")]
    tensors = {"finite": finite.to(dtype), "bad": torch.tensor([1.0, *bad]).to(dtype)}
    safetensors.torch.save_file(
        tensors | {"integers": torch.full((3,), -1)}, tmp_path / "model.safetensors"
    )
    with pytest.raises(NumericalError) as raised:
        check_finite(tmp_path)
    assert f"model.safetensors: bad: {len(bad)} of {len(bad) + 1} values" in raised.value.what
    assert "finite" not in raised.value.what


def test_finite_and_empty_tensors_pass(tmp_path):
    safetensors.torch.save_file(
        {"empty": torch.zeros(0, 4), "ones": torch.ones(3)}, tmp_path / "model.safetensors"
    )
    check_finite(tmp_path)


def test_chunks_cover_the_whole_tensor(tmp_path, monkeypatch):
    monkeypatch.setattr("compressor.models.checkpoint.safetensors_files._CHUNK_VALUES", 7)
    values = np.zeros(50, np.float32)
    values[[0, 6, 7, 48, 49]] = np.inf
    safetensors.torch.save_file({"w": torch.from_numpy(values)}, tmp_path / "model.safetensors")
    with pytest.raises(NumericalError, match="w: 5 of 50 values"):
        check_finite(tmp_path)


def test_a_tokenizer_of_a_terabyte_is_refused_before_it_is_hashed(tmp_path):
    save_decoder(tmp_path, "tiny-llama")
    (tmp_path / "tokenizer.json").touch()
    os.truncate(tmp_path / "tokenizer.json", 1 << 40)
    with pytest.raises(ModelError, match=r"tokenizer\.json has 1099511627776 bytes"):
        model_files(tmp_path)
