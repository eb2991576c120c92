"""``init --from`` writes pipelines that fit a model and can be planned at once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import yaml
from onnx import TensorProto, helper
from tokenizers import Tokenizer, models, pre_tokenizers

from compressor.artifacts.store import Store
from compressor.config import discovery
from compressor.data.contract import SourceContext
from compressor.engine.plan.model_starter import write_model_starter
from compressor.engine.plan.pipeline import load_pipeline
from compressor.engine.plan.plan import Plan
from compressor.engine.plan.planner import make_plan
from compressor.errors import CompressError, ModelError, UsageError
from tests.support.foreign_graphs import graph, weight
from tests.support.model_files import LORA, gguf_header, write_json, write_weights
from tests.support.tiny_files import draw_pictures, tiny_onnx

SMALLEST = {
    "autoglm-phone": ("tiny", "code"),
    "image-classifier": ("tiny", "pictures"),
    "sentence-encoder": ("tiny", "pairs"),
    "transformers": ("tiny-llama", "text"),
}
"""Preset of each family, and the samples for it."""
CHECKPOINTS = sorted(discovery.load(discovery.FAMILIES, "transformers").presets)


@pytest.fixture
def samples(tmp_path: Path) -> dict[str, Path]:
    """Return small files of each kind of samples."""
    folder = tmp_path / "samples"
    draw_pictures(folder / "pictures", 40)
    (folder / "text.txt").write_text("hello world " * 20_000)
    line = json.dumps({"query": "hello", "passage": "world"})
    (folder / "pairs.jsonl").write_text(f"{line}\n" * 100)
    (folder / "code.py").write_text("def load():\n    return {}\n")
    return {
        "pictures": folder / "pictures",
        "text": folder / "text.txt",
        "pairs": folder / "pairs.jsonl",
        "code": folder / "code.py",
    }


def save_model(family: str, preset: str, folder: Path, *, tokenizer: bool = True) -> Path:
    plugin = discovery.load(discovery.FAMILIES, family)
    config = plugin.presets[preset]
    plugin.save(plugin.build(config), config, folder)
    if tokenizer and family in {"transformers", "sentence-encoder"}:
        words = models.WordLevel({"[UNK]": 0, "[PAD]": 1, "hello": 2, "world": 3}, "[UNK]")
        made = Tokenizer(words)
        made.pre_tokenizer = pre_tokenizers.Whitespace()
        made.save(str(folder / "tokenizer.json"))
    return folder


def plan(file: Path) -> Plan:
    sources = SourceContext(file.parent, allow_code=True)
    return make_plan(load_pipeline(file), Store(file.parent / "artifacts"), sources)


def steps(file: Path) -> list[str]:
    return [step["type"] for step in tree(file)["passes"]]


def tree(file: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load(file.read_text())
    return loaded


def test_every_installed_family_is_tested() -> None:
    families = discovery.names(discovery.FAMILIES)
    with_presets = {name for name in families if discovery.load(discovery.FAMILIES, name).presets}
    assert SMALLEST.keys() == with_presets


@pytest.mark.parametrize("family", SMALLEST)
def test_a_pipeline_for_each_family_can_be_planned(
    tmp_path: Path, samples: dict[str, Path], family: str
) -> None:
    preset, kind = SMALLEST[family]
    model = save_model(family, preset, tmp_path / "model")
    written = write_model_starter(model, tmp_path / "here" / "deep", samples[kind])
    assert written.missing == ()
    assert written.needs_code == (kind == "code")
    assert (written.file.parent / "pipeline.schema.json").is_file()
    expected = "awq" if family == "transformers" else "qat"
    assert steps(written.file) == [expected, "export-onnx"]
    assert [step.name for step in plan(written.file).steps] == ["source", expected, "export-onnx"]


@pytest.mark.parametrize("preset", CHECKPOINTS)
def test_a_pipeline_for_each_kind_of_checkpoint_can_be_planned(
    tmp_path: Path, samples: dict[str, Path], preset: str
) -> None:
    model = save_model("transformers", preset, tmp_path / "model")
    file = write_model_starter(model, tmp_path, samples["text"]).file
    assert len(plan(file).steps) == 3


def test_the_pipeline_is_valid_once_the_placeholder_is_filled(
    tmp_path: Path, samples: dict[str, Path]
) -> None:
    model = save_model("image-classifier", "tiny", tmp_path / "model")
    written = write_model_starter(model, tmp_path, None)
    assert any("one folder per class" in line for line in written.missing)
    with pytest.raises(CompressError, match="pictures"):
        plan(written.file)
    samples["pictures"].rename(tmp_path / "pictures")
    assert len(plan(written.file).steps) == 3


def test_a_missing_tokenizer_is_named(tmp_path: Path, samples: dict[str, Path]) -> None:
    model = save_model("transformers", "tiny-llama", tmp_path / "model", tokenizer=False)
    with pytest.raises(UsageError, match="tokenizer"):
        write_model_starter(model, tmp_path, samples["text"])
    written = write_model_starter(model, tmp_path, None)
    assert any("tokenizer.json is not there" in line for line in written.missing)


def test_an_onnx_file_leads_to_integers_and_to_an_engine(tmp_path: Path) -> None:
    product = helper.make_node("MatMul", ["x", "w"], ["y"])
    model = graph([product], {"w": weight(32, 8)}, {"x": ["N", 32]}, {"y": ["N", 8]})
    onnx.save(model, tmp_path / "encoder.onnx")
    written = write_model_starter(tmp_path / "encoder.onnx", tmp_path / "out", None)
    pipeline = tree(written.file)
    assert pipeline["model"] == {"path": "../encoder.onnx"}
    assert steps(written.file) == ["optimize-onnx", "tensorrt"]
    assert pipeline["passes"][1]["from"] == "source"
    assert pipeline["data"]["samples"]["source"] == "arrays"
    assert any("an .npz or .safetensors file with the arrays" in line for line in written.missing)


def test_a_graph_without_products_leads_to_an_engine_alone(tmp_path: Path) -> None:
    (tmp_path / "sum.onnx").write_bytes(tiny_onnx())
    written = write_model_starter(tmp_path / "sum.onnx", tmp_path / "out", None)
    assert steps(written.file) == ["tensorrt"]


def test_profiles_of_a_graph_have_the_sizes_of_the_samples(tmp_path: Path) -> None:
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 3, "h", "w"])
    out = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 3, "h", "w"])
    node = helper.make_node("Identity", ["image"], ["y"])
    graph = helper.make_graph([node], "g", [image], [out])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)])
    onnx.save(model, str(tmp_path / "model.onnx"))
    np.savez(tmp_path / "data.npz", image=np.zeros((4, 3, 48, 96), np.float32))
    file = write_model_starter(tmp_path / "model.onnx", tmp_path / "o", tmp_path / "data.npz").file
    engine = tree(file)["passes"][-1]
    assert engine["profiles"]["image"]["max"] == [8, 3, 48, 96]
    assert engine["profiles"]["image"]["min"] == [1, 3, 48, 96]


def test_dynamic_dimensions_of_a_graph_get_profiles(
    tmp_path: Path, samples: dict[str, Path]
) -> None:
    image = helper.make_tensor_value_info("image", TensorProto.UINT8, ["batch", 3, 16, 16])
    out = helper.make_tensor_value_info("y", TensorProto.UINT8, ["batch", 3, 16, 16])
    node = helper.make_node("Identity", ["image"], ["y"])
    graph = helper.make_graph([node], "g", [image], [out])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)])
    onnx.save(model, str(tmp_path / "model.onnx"))
    file = write_model_starter(tmp_path / "model.onnx", tmp_path / "o", samples["pictures"]).file
    step = tree(file)["passes"][-1]
    assert step["calibration"] == {"data": "samples"}
    assert step["profiles"]["image"]["max"] == [8, 3, 16, 16]
    assert tree(file)["data"]["samples"]["image_size"] == 16


def test_a_group_size_is_written_only_where_the_default_does_not_fit(tmp_path: Path) -> None:
    model = save_model("transformers", "tiny-llama", tmp_path / "model")
    file = write_model_starter(model, tmp_path, None).file
    config = json.loads((model / "config.json").read_text())
    size = tree(file)["passes"][0]["group_size"]
    assert config["hidden_size"] % size == config["intermediate_size"] % size == 0


def test_nothing_is_written_where_no_pass_reads_the_model(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(gguf_header())
    with pytest.raises(ModelError, match="is a GGUF file"):
        write_model_starter(tmp_path / "m.gguf", tmp_path / "out", None)
    adapter = tmp_path / "adapter"
    write_json(adapter / "adapter_config.json", {"peft_type": "LORA"})
    write_weights(adapter / "adapter_model.safetensors", LORA)
    with pytest.raises(UsageError, match="awq: reads torch, not adapter") as caught:
        write_model_starter(adapter, tmp_path / "out", None)
    assert "merge_and_unload" in str(caught.value.remedy)
    assert not (tmp_path / "out").exists()


def test_data_that_does_not_fit_is_refused_with_the_expected_files(
    tmp_path: Path, samples: dict[str, Path]
) -> None:
    model = save_model("image-classifier", "tiny", tmp_path / "model")
    with pytest.raises(UsageError, match="does not fit") as caught:
        write_model_starter(model, tmp_path, samples["text"])
    assert "one folder per class" in str(caught.value.remedy)
    assert not (tmp_path / "pipeline.yaml").exists()


def test_an_existing_pipeline_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(tiny_onnx())
    (tmp_path / "pipeline.yaml").write_text("mine")
    with pytest.raises(UsageError, match="already exists"):
        write_model_starter(tmp_path / "model.onnx", tmp_path, None)
    assert (tmp_path / "pipeline.yaml").read_text() == "mine"
