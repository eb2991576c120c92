"""LoRA adapters as GGUF files: what llama.cpp computes under them, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from compressor.errors import ModelError, UsageError
from compressor.models.adapters.peft_modules import add_adapter
from compressor.models.checkpoint.loading import load_module
from compressor.runtimes.delta.apply import Application, apply_package
from compressor.runtimes.llamacpp.adapters import write_gguf_adapter
from compressor.runtimes.llamacpp.model import LlamaCppModel
from tests.support.cli import cli
from tests.support.decoders import pack_decoder
from tests.support.deltas import NOON, make_package
from tests.support.gguf_checkpoints import export_gguf, save_gguf_parent
from tests.support.slots import write_random_adapter

gguf = pytest.importorskip("gguf")
pytest.importorskip("xllamacpp")
pytest.importorskip("peft")

TOKENS = np.random.default_rng(0).integers(3, 380, 48)
ENDS = ("q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "down_proj", "qkv_proj", "gate_up_proj")


def random_adapter(base: Path, folder: Path, ends: tuple[str, ...] = ENDS) -> Path:
    modules = load_module(base).named_modules()
    shapes = {n: tuple(m.weight.shape) for n, m in modules if n.rpartition(".")[2] in ends}
    return write_random_adapter(base, folder, shapes)


def torch_logits(base: Path, adapter: Path | None) -> np.ndarray:
    module = load_module(base, "cpu").float()
    if adapter is not None:
        module = add_adapter(module, adapter)
    with torch.no_grad():
        logits: np.ndarray = module(input_ids=torch.tensor(TOKENS[None])).logits[0].numpy()
    return logits


def llamacpp_logits(file: Path, adapter: Path | None) -> np.ndarray:
    model = LlamaCppModel(file, threads=1, adapter=adapter)
    [logits] = model.logits([TOKENS])
    model.close()
    return logits


def relative_error(logits: np.ndarray, expected: np.ndarray) -> float:
    error = np.square(logits - expected).mean() / np.square(expected - expected.mean()).mean()
    return float(error)


@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma3", "phi3", "granite"])
def test_llamacpp_computes_what_torch_does_under_an_adapter(name: str, tmp_path: Path) -> None:
    parent = save_gguf_parent(tmp_path / "parent", name)
    file, _ = export_gguf(parent, tmp_path / "out")
    adapter = random_adapter(parent.model, tmp_path / "adapter")
    size = write_gguf_adapter(file, adapter, tmp_path / "adapter.gguf")
    assert size == (tmp_path / "adapter.gguf").stat().st_size
    plain, expected = torch_logits(parent.model, None), torch_logits(parent.model, adapter)
    assert np.abs(expected - plain).max() > 0.3 * plain.std()
    logits = llamacpp_logits(file, tmp_path / "adapter.gguf")
    assert relative_error(logits, expected) < 1e-4  # llama.cpp keeps keys and values in float16


def test_a_packed_model_takes_the_adapter_that_was_trained_on_it(tmp_path: Path) -> None:
    packed = pack_decoder(save_gguf_parent(tmp_path / "parent"), tmp_path / "awq", gguf_scales=True)
    file, _ = export_gguf(packed, tmp_path / "out")
    adapter = random_adapter(packed.model, tmp_path / "adapter", ("q_proj", "v_proj"))
    write_gguf_adapter(file, adapter, tmp_path / "adapter.gguf")
    expected = torch_logits(packed.model, adapter)
    logits = llamacpp_logits(file, tmp_path / "adapter.gguf")
    assert relative_error(logits, expected) < 1e-3  # activations are rounded to 8 bits there


@pytest.fixture(scope="module")
def bed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A float model, its GGUF file, and an adapter of it."""
    folder = tmp_path_factory.mktemp("gguf")
    parent = save_gguf_parent(folder / "parent")
    export_gguf(parent, folder / "out")
    random_adapter(parent.model, folder / "adapter" / "model", ("q_proj", "v_proj"))
    return folder


def changed(bed: Path, tmp_path: Path, *, without: str = "", **config: object) -> Path:
    """Return a copy of the adapter without tensors of a name, and with another config."""
    folder = tmp_path / "changed"
    folder.mkdir()
    tensors = load_file(bed / "adapter" / "model" / "adapter_model.safetensors")
    kept = {name: t for name, t in tensors.items() if not without or without not in name}
    save_file(kept, folder / "adapter_model.safetensors")
    fields = json.loads((bed / "adapter" / "model" / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**fields, **config}))
    (folder / "base.json").write_bytes((bed / "adapter" / "model" / "base.json").read_bytes())
    return folder


@pytest.mark.parametrize("part", ["layers.1.self_attn.q_proj", "v_proj"])
def test_an_adapter_of_which_a_part_is_missing_is_refused(
    part: str, bed: Path, tmp_path: Path
) -> None:
    with pytest.raises(ModelError, match="has no factors"):
        write_gguf_adapter(
            bed / "out" / "model.gguf", changed(bed, tmp_path, without=part), tmp_path / "a.gguf"
        )
    assert not list(tmp_path.glob("*.gguf*"))


def test_the_adapter_of_another_model_is_refused(bed: Path, tmp_path: Path) -> None:
    other = save_gguf_parent(tmp_path / "parent", intermediate_size=128)
    adapter = random_adapter(other.model, tmp_path / "adapter", ("q_proj",))
    with pytest.raises(ModelError, match="was exported from another model"):
        write_gguf_adapter(bed / "out" / "model.gguf", adapter, tmp_path / "a.gguf")


def test_a_file_that_does_not_state_its_model_is_refused(bed: Path, tmp_path: Path) -> None:
    file = tmp_path / "model.gguf"
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_block_count(1)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    with pytest.raises(UsageError, match="does not state the model"):
        write_gguf_adapter(file, bed / "adapter" / "model", tmp_path / "a.gguf")


def test_llamacpp_refuses_a_file_that_is_no_adapter(bed: Path) -> None:
    file = bed / "out" / "model.gguf"
    with pytest.raises(ModelError, match="cannot load the adapter"):
        LlamaCppModel(file, threads=1, adapter=file)


def test_the_command_writes_the_form_of_the_model(bed: Path, tmp_path: Path) -> None:
    result = cli(
        "export-adapter", bed / "adapter" / "model", bed / "out", tmp_path / "a.gguf", "--json"
    )
    assert result.returncode == 0
    assert json.loads(result.stdout)["size_bytes"] == (tmp_path / "a.gguf").stat().st_size
    result = cli("export-adapter", bed / "adapter" / "model", bed / "parent", tmp_path / "b.gguf")
    assert result.returncode == 2
    assert "export-gguf" in result.stderr


def test_a_package_of_an_adapter_is_applied_beside_the_gguf_file(bed: Path, tmp_path: Path) -> None:
    package, _ = make_package(bed / "adapter" / "model", bed / "parent", tmp_path / "package")
    request = Application(package, bed / "out", tmp_path / "applied", None, False, False, NOON)
    apply_package(request)
    file = tmp_path / "applied.gguf"
    assert write_gguf_adapter(bed / "out" / "model.gguf", tmp_path / "applied", file)
