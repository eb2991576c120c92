"""Pickled weights: converted as tensors alone, into a new folder, or refused."""

import json
import os
import pickle
from pathlib import Path

import pytest
import safetensors.torch
import torch

from compressor.errors import ModelError, UsageError
from compressor.models.checkpoint.loading import load_module
from compressor.models.checkpoint.pickled import convert_pickled
from tests.support.checkpoints import stored_checkpoint
from tests.support.cli import cli


@pytest.fixture
def folder(tmp_path):
    stored = stored_checkpoint("tiny-llama")
    folder = stored.write(tmp_path / "pickled")
    (folder / "model.safetensors").unlink()
    (folder / "tokenizer.json").write_text("{}")
    # As torch saves it: the head is stored too, and shares the embedding's memory.
    state = stored.tensors | {"lm_head.weight": stored.tensors[stored.embedding]}
    torch.save(state, folder / "pytorch_model.bin")
    return folder


def state_of(folder):
    return torch.load(folder / "pytorch_model.bin", weights_only=True)


def test_the_remedy_of_a_folder_with_pickled_weights_works(folder, tmp_path):
    with pytest.raises(ModelError) as refused:
        load_module(folder)
    assert f"autoglm-compress convert {folder} NEW_FOLDER" in refused.value.remedy
    shown = " ".join(cli("show", folder).stdout.split())
    assert "autoglm-compress convert" in shown
    converted = cli("convert", folder, tmp_path / "new")
    assert converted.returncode == 0, converted.stderr
    module = load_module(tmp_path / "new")
    for name, value in state_of(folder).items():
        assert torch.equal(module.state_dict()[name], value)
    assert module.lm_head.weight is module.model.embed_tokens.weight
    assert (tmp_path / "new" / "tokenizer.json").is_file()
    assert not list((tmp_path / "new").glob("*.bin"))


def test_shards_are_converted_with_an_index(folder, tmp_path):
    state = state_of(folder)
    names = sorted(state)
    weight_map = {}
    for number, part in enumerate((names[::2], names[1::2]), start=1):
        file = f"pytorch_model-{number:05d}-of-00002.bin"
        torch.save({name: state[name] for name in part}, folder / file)
        weight_map |= dict.fromkeys(part, file)
    (folder / "pytorch_model.bin").unlink()
    with pytest.raises(ModelError, match=r"not clear which"):
        convert_pickled(folder, tmp_path / "new")
    index = json.dumps({"weight_map": weight_map})
    (folder / "pytorch_model.bin.index.json").write_text(index)
    convert_pickled(folder, tmp_path / "new")
    loaded = load_module(tmp_path / "new").state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in state.items())


def test_weights_below_a_usual_key_are_found_and_named(folder, tmp_path):
    torch.save({"epoch": 3, "state_dict": state_of(folder)}, folder / "pytorch_model.bin")
    converted = convert_pickled(folder, tmp_path / "new")
    assert converted.notes == ("pytorch_model.bin: the weights are those under 'state_dict'",)


class Attack:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return Path.touch, (self.marker,)


def write_attack(folder):
    with (folder / "pytorch_model.bin").open("wb") as file:
        pickle.dump({"w": Attack(folder / "code-ran")}, file)


def truncate(folder):
    file = folder / "pytorch_model.bin"
    file.write_bytes(file.read_bytes()[:-500])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (write_attack, "cannot be read as tensors alone"),
        (truncate, "cannot be read as tensors alone"),
        (lambda folder: (folder / "pytorch_model.bin").write_bytes(b""), "cannot be read as"),
        (
            lambda folder: torch.save(
                {"steps": 3, "w": torch.ones(1)}, folder / "pytorch_model.bin"
            ),
            r"expected tensors by name, found steps \(int\)",
        ),
        (
            lambda folder: torch.save({"w": torch.ones(1)}, folder / "pytorch_model.bin"),
            "missing: model.norm.weight",
        ),
    ],
)
def test_what_is_not_the_weights_is_refused_and_nothing_is_left(folder, tmp_path, damage, message):
    damage(folder)
    before = sorted(path.name for path in tmp_path.iterdir())
    with pytest.raises(ModelError, match=message):
        convert_pickled(folder, tmp_path / "new")
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    assert not (folder / "code-ran").exists()


def save(content):
    return lambda folder: torch.save(content, folder / "pytorch_model.bin")


def write(content):
    return lambda folder: (folder / "pytorch_model.bin").write_bytes(content)


def save_quantized(folder):
    quantized = torch.quantize_per_tensor(torch.ones(2), 1.0, 0, torch.qint8)
    torch.save({"w": quantized}, folder / "pytorch_model.bin")


@pytest.mark.filterwarnings("ignore:.*quantized tensor creation")
@pytest.mark.parametrize(
    ("damage", "message", "remedy"),
    [
        (write(b"version https://git-lfs.github.com/spec/v1\n"), "Git LFS pointer", "git lfs pull"),
        (write(safetensors.torch.save({"w": torch.ones(1)})), "is a safetensors file", "rename it"),
        (save_quantized, r"w \(quantized tensor\)", "state_dict"),
        (save({"w": torch.eye(2).to_sparse()}), r"w \(sparse tensor\)", "state_dict"),
        (save([torch.ones(1)]), r"the whole file \(list\)", "state_dict"),
    ],
)
def test_files_of_another_kind_are_named(folder, tmp_path, damage, message, remedy):
    damage(folder)
    with pytest.raises(ModelError, match=message) as raised:
        convert_pickled(folder, tmp_path / "new")
    assert remedy in raised.value.remedy


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod."])
def test_prefixes_of_wrapped_modules_are_left_out(folder, tmp_path, prefix):
    state = state_of(folder)
    wrapped = {"model": {"state_dict": {prefix + name: value for name, value in state.items()}}}
    torch.save(wrapped, folder / "pytorch_model.bin")
    converted = convert_pickled(folder, tmp_path / "new")
    assert len(converted.notes) == 3
    loaded = load_module(tmp_path / "new").state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in state.items())


def test_nothing_is_overwritten_and_safetensors_are_left_alone(folder, tmp_path):
    (tmp_path / "new").mkdir()
    with pytest.raises(UsageError, match="exists"):
        convert_pickled(folder, tmp_path / "new")
    stored_checkpoint("tiny-llama").write(folder)
    with pytest.raises(UsageError, match="safetensors already"):
        convert_pickled(folder, tmp_path / "other")


def test_a_config_of_a_terabyte_is_refused_and_not_copied(folder, tmp_path):
    os.truncate(folder / "config.json", 1 << 40)
    with pytest.raises(ModelError, match="configs of at most"):
        convert_pickled(folder, tmp_path / "new")
    assert not list(tmp_path.glob(".new*"))
