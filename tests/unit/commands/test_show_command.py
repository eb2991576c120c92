"""``show`` and ``init --from`` as a user types them, and the same answers in a pipeline."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from compressor.models.families.transformers.family import Transformers
from tests.support.cli import cli
from tests.support.model_files import gguf_header
from tests.support.tiny_files import tiny_onnx


@pytest.fixture
def gguf(tmp_path: Path) -> Path:
    (tmp_path / "model.gguf").write_bytes(gguf_header())
    return tmp_path / "model.gguf"


def test_a_foreign_file_is_described_with_exit_code_0(gguf: Path) -> None:
    printed = cli("show", gguf)
    assert printed.returncode == 0, printed.stderr
    for text in ("a GGUF file", "Tiny Llama", "Q4_K", "awq", "start from the checkpoint"):
        assert text in printed.stdout
    report = json.loads(cli("show", gguf, "--json").stdout)
    assert report["title"].startswith("a GGUF file")
    assert {entry["dtype"] for entry in report["dtypes"]} == {"Q4_K", "F32"}
    assert all(not entry["suitable"] for entry in report["passes"])


def test_a_pipeline_gives_the_answer_of_show(gguf: Path) -> None:
    pipeline = gguf.with_name("pipeline.yaml")
    pipeline.write_text("version: 1\nname: p\nmodel: {path: model.gguf}\npasses: []\n")
    done = cli("plan", pipeline)
    assert done.returncode == 2
    assert "pipeline.yaml:3: model.path" in done.stderr
    assert "is a GGUF file (llama.cpp); no pass reads it" in done.stderr
    assert "start from the checkpoint" in done.stderr


def test_what_is_not_recognized_ends_with_exit_code_2(tmp_path: Path) -> None:
    (tmp_path / "junk").mkdir()
    (tmp_path / "junk" / "notes.txt").write_text("text")
    (tmp_path / "empty").mkdir()
    (tmp_path / "tool").mkdir()
    (tmp_path / "tool" / "runs").mkdir()
    for name, text in (
        ("junk", "it holds notes.txt"),
        ("empty", "it is empty"),
        ("tool", "it holds runs"),
        ("junk/notes.txt", "it has 4 bytes"),
        ("missing", "does not exist"),
    ):
        done = cli("show", name, cwd=tmp_path)
        assert (done.returncode, text in done.stderr) == (2, True), (name, done.stderr)
        assert "Traceback" not in done.stderr


def test_a_damaged_model_is_described_and_ends_with_exit_code_2(gguf: Path) -> None:
    gguf.write_bytes(gguf_header()[:40])
    done = cli("show", gguf)
    assert done.returncode == 2
    assert "a GGUF file" in done.stdout
    assert "is damaged" in done.stderr


def test_a_config_that_is_no_json_is_described_and_ends_with_exit_code_2(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": ')
    done = cli("show", tmp_path)
    assert done.returncode == 2
    assert "config.json is not valid JSON" in done.stdout
    assert "is damaged" in done.stderr


def test_a_single_onnx_file_goes_through_a_pipeline(tmp_path: Path) -> None:
    (tmp_path / "encoder.onnx").write_bytes(tiny_onnx())
    (tmp_path / "other.bin").write_bytes(b"x")
    pipeline = tmp_path / "pipeline.yaml"
    pipeline.write_text("version: 1\nname: p\nmodel: {path: encoder.onnx}\npasses: [{type: toy}]\n")
    done = cli("run", pipeline, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (source,) = (tmp_path / "artifacts").glob("source-*")
    assert [file.name for file in (source / "model").iterdir()] == ["model.onnx"]


def test_an_artifact_is_shown_with_its_passes(toy_pipeline: Path) -> None:
    home = toy_pipeline.parent
    assert cli("run", toy_pipeline, cwd=home).returncode == 0
    (source,) = (home / "artifacts").glob("source-*")
    assert "toy" in cli("show", source).stdout
    report = json.loads(cli("show", source, "--json").stdout)
    assert report["kind"] == "onnx"
    assert {entry["name"]: entry["suitable"] for entry in report["passes"]}["toy"]


def test_init_from_a_model_and_its_contradictions(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(tiny_onnx())
    done = cli("init", "new", "--from", "model.onnx", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "autoglm-compress plan new/pipeline.yaml" in done.stdout
    assert "set `path`: an .npz or .safetensors file with the arrays" in done.stdout
    missing = cli("validate", "new/pipeline.yaml", cwd=tmp_path)
    assert missing.returncode == 2
    assert "samples.npz does not exist" in missing.stderr
    for arguments in (
        ["--from", "model.onnx", "--starter", "phone"],
        ["--data", "x"],
        ["--from", "missing"],
        ["--from", "model.onnx", "--data", "missing"],
    ):
        refused = cli("init", "other", *arguments, cwd=tmp_path)
        assert refused.returncode == 2, arguments
        assert not (tmp_path / "other").exists()


def test_a_pickled_checkpoint_can_be_read_after_the_command_that_show_names(
    tmp_path: Path,
) -> None:
    import torch
    from transformers import LlamaForCausalLM

    family = Transformers()
    config = family.presets["tiny-llama"]
    family.save(family.build(config), config, tmp_path / "model")
    state = LlamaForCausalLM.from_pretrained(str(tmp_path / "model")).state_dict()
    torch.save(state, tmp_path / "model" / "pytorch_model.bin")
    (tmp_path / "model" / "model.safetensors").unlink()
    report = json.loads(cli("show", "model", "--json", cwd=tmp_path).stdout)
    assert "autoglm-compress convert model NEW_FOLDER" in report["remedy"]
    assert cli("convert", "model", "new", cwd=tmp_path).returncode == 0
    report = json.loads(cli("show", "new", "--json", cwd=tmp_path).stdout)
    assert {entry["name"]: entry["suitable"] for entry in report["passes"]}["awq"]
