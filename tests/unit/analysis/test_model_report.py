"""Reports on models: parts, dtypes, passes and remedies."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from compressor.analysis.model_report import ModelReport, report_path
from compressor.errors import CompressError, ModelError
from compressor.models.families.image_classifier.family import ImageClassifier
from compressor.models.families.transformers.family import Transformers
from tests.support.model_files import LORA, gguf_header, write_json, write_weights
from tests.support.tiny_files import tiny_onnx

CLASSIFIER, CHECKPOINT = ImageClassifier(), Transformers()


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    config = CHECKPOINT.presets["tiny-llama"]
    folder = tmp_path / "checkpoint"
    CHECKPOINT.save(CHECKPOINT.build(config), config, folder)
    return folder


def suitable(report: ModelReport) -> set[str]:
    return {pass_.name for pass_ in report.passes if pass_.suitable}


def remedies(report: ModelReport, name: str) -> str:
    return "; ".join(next(pass_.remedies for pass_ in report.passes if pass_.name == name))


def test_a_checkpoint_is_reported_with_class_size_and_dtypes(checkpoint: Path) -> None:
    report = report_path(checkpoint)
    assert report.title == "a checkpoint of transformers: LlamaForCausalLM (llama)"
    assert report.format == "torch"
    assert [entry.dtype for entry in report.dtypes] == ["float32"]
    assert report.dtypes[0].share == 1
    assert report.tensors == report.dtypes[0].tensors
    assert report.parameters == report.dtypes[0].values
    assert {"awq", "prune", "export-onnx"} <= suitable(report)
    assert "awq" in remedies(report, "qat")
    assert remedies(report, "tensorrt") == "run export-onnx first"


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_checkpoint_may_be_named_by_its_file(checkpoint: Path, name: str) -> None:
    assert report_path(checkpoint / name) == report_path(checkpoint)


def test_files_that_nothing_reads_are_named_with_what_they_are(checkpoint: Path) -> None:
    before = report_path(checkpoint)
    torch.save(nn.Linear(2, 2).state_dict(), checkpoint / "pytorch_model.bin")
    torch.save({"step": 3}, checkpoint / "optimizer.pt")
    write_weights(checkpoint / "model-00001-of-00002.safetensors")
    (checkpoint / "README.md").write_text("text")
    write_json(checkpoint / "checkpoint-5" / "config.json", {"model_type": "llama"})
    report = report_path(checkpoint)
    unused = {file.name: file.note for file in report.files if not file.used}
    assert unused == {
        "README.md": "documentation",
        "checkpoint-5/": "state of a trainer",
        "model-00001-of-00002.safetensors": "weights that do not count: no index names them",
        "optimizer.pt": "state of a trainer",
        "pytorch_model.bin": "a pickle, which can run code when it is loaded",
    }
    assert report.size_bytes == before.size_bytes
    assert report.dtypes == before.dtypes
    assert [inner.path for inner in report.inner] == [str(checkpoint / "checkpoint-5")]


def test_several_models_in_one_folder_are_all_named(checkpoint: Path) -> None:
    (checkpoint / "model.onnx").write_bytes(tiny_onnx())
    report = report_path(checkpoint)
    assert (report.format, report.also) == ("onnx", ("torch",))
    unused = {file.name for file in report.files if not file.used}
    assert unused == {"model.safetensors"}
    assert report_path(checkpoint / "config.json").format == "torch"


def test_external_data_counts_whatever_its_name(
    onnx_folder: Callable[[str | None], Path],
) -> None:
    folder = onnx_folder("weights.safetensors")
    (folder / "weights.safetensors").write_bytes(bytes(24))
    write_weights(folder / "model.safetensors")
    used = {file.name for file in report_path(folder).files if file.used}
    assert used == {"model.onnx", "weights.safetensors"}


def test_a_damaged_checkpoint_is_reported_as_damaged(checkpoint: Path) -> None:
    weights = checkpoint / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    report = report_path(checkpoint)
    assert report.damaged
    assert report.problem is not None
    assert "truncated" in report.problem
    assert not suitable(report)


def test_a_model_type_without_support_is_named_with_the_reason(tmp_path: Path) -> None:
    config = {"model_type": "zzz", "architectures": ["ZzzModel"]}
    write_json(tmp_path / "config.json", config)
    write_weights(tmp_path / "model.safetensors")
    report = report_path(tmp_path)
    assert report.title == "a checkpoint of transformers: ZzzModel (zzz)"
    assert report.problem is not None
    assert "zzz" in report.problem
    assert [entry.dtype for entry in report.dtypes] == ["float32", "float16"]
    assert not suitable(report)
    assert report.remedy is not None
    assert not report.damaged


def test_pickled_weights_of_a_checkpoint_lead_to_convert(checkpoint: Path) -> None:
    (checkpoint / "model.safetensors").unlink()
    torch.save(nn.Linear(2, 2).state_dict(), checkpoint / "pytorch_model.bin")
    for path in (checkpoint, checkpoint / "pytorch_model.bin"):
        report = report_path(path)
        assert not suitable(report)
        assert f"autoglm-compress convert {checkpoint} NEW_FOLDER" in str(report.remedy)


def test_sentence_transformers_are_named_beside_the_checkpoint(checkpoint: Path) -> None:
    (checkpoint / "modules.json").write_text(
        '[{"type": "sentence_transformers.models.Transformer", "path": ""},'
        ' {"type": "sentence_transformers.models.Pooling", "path": "1_Pooling"}]'
    )
    details = dict(report_path(checkpoint).details)
    assert details["sentence-transformers"] == "Transformer, Pooling"


def test_an_adapter_is_reported_with_its_way_forward(tmp_path: Path) -> None:
    write_json(tmp_path / "adapter_config.json", {"peft_type": "LORA", "r": 2})
    write_weights(tmp_path / "adapter_model.safetensors", LORA)
    for path in (tmp_path, tmp_path / "adapter_model.safetensors"):
        report = report_path(path)
        assert report.title == "a PEFT adapter (LORA)"
        assert suitable(report) == {"delta"}
        assert "merge_and_unload" in remedies(report, "awq")
        assert report.parameters == 16


def test_an_onnx_file_is_reported_with_its_external_data(
    onnx_folder: Callable[[str | None], Path],
) -> None:
    folder = onnx_folder("weights.bin")
    (folder / "weights.bin").write_bytes(bytes(24))
    (folder / "model.onnx").rename(folder / "encoder.onnx")
    report = report_path(folder / "encoder.onnx")
    assert report.format == "onnx"
    assert dict(report.details)["external data"] == "weights.bin"
    assert dict(report.details)["input x"] == "float [batch, 3]"
    assert [file.name for file in report.files] == ["encoder.onnx", "weights.bin"]
    assert report.parameters == 6
    assert suitable(report) >= {"tensorrt"}
    assert "start from the torch model" in remedies(report, "awq")


def test_a_foreign_model_is_reported_with_its_tensors_and_a_reason_for_each_pass(
    tmp_path: Path,
) -> None:
    (tmp_path / "model.gguf").write_bytes(gguf_header())
    report = report_path(tmp_path / "model.gguf")
    assert report.format is None
    assert [(entry.dtype, entry.tensors) for entry in report.dtypes] == [("Q4_K", 1), ("F32", 1)]
    assert np.isclose(sum(entry.share for entry in report.dtypes), 1)
    assert not suitable(report)
    assert all(pass_.reasons and pass_.remedies for pass_ in report.passes)


def test_a_folder_of_models_lists_them_with_their_titles(checkpoint: Path) -> None:
    (checkpoint.parent / "model.gguf").write_bytes(gguf_header())
    report = report_path(checkpoint.parent)
    assert [(Path(inner.path).name, inner.title) for inner in report.inner] == [
        ("checkpoint", "a checkpoint of transformers: LlamaForCausalLM (llama)"),
        ("model.gguf", "a GGUF file (llama.cpp)"),
    ]


def test_our_own_models_are_reported_by_family(tmp_path: Path) -> None:
    config = CLASSIFIER.presets["tiny"]
    CLASSIFIER.save(CLASSIFIER.build(config), config, tmp_path)
    report = report_path(tmp_path)
    assert report.title == "a model of the family image-classifier"
    assert {"qat", "prune", "awq"} <= suitable(report)


def test_a_missing_path_and_an_empty_folder_are_errors(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="does not exist"):
        report_path(tmp_path / "nothing")
    with pytest.raises(ModelError, match="it is empty"):
        report_path(tmp_path)


@pytest.mark.parametrize(
    ("packing", "format_name", "helps"),
    [
        (None, "torch", ""),
        ({"quant_method": "gptq", "bits": 4}, "packed", "before its weights were quantized"),
        ("gptq", "packed", ""),
    ],
)
def test_weights_quantized_by_another_method_are_recognized(
    checkpoint: Path, packing: object, format_name: str, helps: str
) -> None:
    file = checkpoint / "config.json"
    write_json(file, json.loads(file.read_text()) | {"quantization_config": packing})
    report = report_path(checkpoint)
    assert report.format == format_name
    assert (report.problem is None) == (packing is None)
    assert helps in str(report.remedy)


def test_a_folder_of_weights_alone_is_reported_with_what_is_missing(tmp_path: Path) -> None:
    write_weights(tmp_path / "model.safetensors")
    report = report_path(tmp_path)
    assert report.title == "weights without a config.json that describes their model"
    assert "config.json is missing" in str(report.problem)
    assert not suitable(report)


@pytest.mark.parametrize("content", ["{", '{"a":' + "[" * 200_000], ids=["cut off", "nested"])
@pytest.mark.parametrize(
    "name",
    ["config.json", "bundle.json", "adapter_config.json", "modules.json", "params.json"],
)
def test_a_damaged_json_file_of_any_kind_is_no_traceback(
    tmp_path: Path, name: str, content: str
) -> None:
    (tmp_path / name).write_text(content)
    (tmp_path / "consolidated.pth").write_bytes(b"x")
    try:
        report = report_path(tmp_path)
    except CompressError as error:
        assert name in error.what
    else:
        assert not any(entry.suitable for entry in report.passes)
