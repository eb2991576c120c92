"""Files and folders of other libraries are recognized by their content, and never executed."""

from __future__ import annotations

import io
import json
import pickle
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from compressor.errors import ModelError
from compressor.runtimes.foreign.identify import identify, identify_any
from compressor.runtimes.formats import recognize
from tests.support.model_files import LORA, Bomb, gguf_header, write_json, write_weights
from tests.support.tiny_files import tiny_onnx


def module() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 3), nn.ReLU())


STATE = [("0.weight", "float32", (3, 4)), ("0.bias", "float32", (3,))]


def tensors_of(path: Path) -> list[tuple[str, str, tuple[int, ...]]]:
    found = identify(path)
    assert found is not None
    listing = found.describe().tensors
    assert listing is not None
    return [(tensor.name, tensor.dtype, tensor.shape) for tensor in listing]


@pytest.mark.parametrize(
    ("name", "save"),
    [
        ("zip.pt", lambda file: torch.save(module().state_dict(), file)),
        (
            "legacy.pth",
            lambda file: torch.save(
                module().state_dict(), file, _use_new_zipfile_serialization=False
            ),
        ),
        ("module.bin", lambda file: torch.save(module(), file)),
        ("script.xyz", lambda file: torch.jit.save(torch.jit.script(module()), file)),
    ],
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_tensors_of_a_pickle_are_listed_from_its_opcodes(
    tmp_path: Path, name: str, save: Callable[[str], None]
) -> None:
    file = tmp_path / name
    save(str(file))
    assert tensors_of(file) == STATE


def test_nested_half_and_shared_tensors_of_a_pickle_are_listed(tmp_path: Path) -> None:
    weight = torch.ones(2, 2, dtype=torch.bfloat16)
    state = {"model": {"w": weight, "tied": nn.Parameter(weight)}, "steps": [torch.zeros(3)]}
    torch.save(state, tmp_path / "a.ckpt")
    assert tensors_of(tmp_path / "a.ckpt") == [
        ("model.w", "bfloat16", (2, 2)),
        ("model.tied", "bfloat16", (2, 2)),
        ("steps.0", "float32", (3,)),
    ]


def test_tensors_of_an_exported_program_are_listed(tmp_path: Path) -> None:
    program = torch.export.export(module(), (torch.zeros(2, 4),))
    torch.export.save(program, tmp_path / "model.pt2")
    stored = recognize(tmp_path / "model.pt2")
    assert stored.format.name == "program"
    listed = stored.format.tensor_listing(stored.path)
    assert listed is not None
    assert sorted((tensor.name, tensor.dtype, tensor.shape) for tensor in listed) == sorted(STATE)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_nothing_is_unpickled(tmp_path: Path, protocol: int) -> None:
    file = tmp_path / "bomb.pkl"
    file.write_bytes(pickle.dumps({"x": Bomb(tmp_path / "created")}, protocol))
    torch.save(Bomb(tmp_path / "created"), tmp_path / "bomb.pt")
    for path in (file, tmp_path / "bomb.pt"):
        found = identify(path)
        assert found is not None
        assert "a pickle" in found.title
        rows = dict(found.describe().details)
        assert "pathlib" in rows["would import"]
    assert not (tmp_path / "created").exists()


def test_a_pickle_whose_containers_are_nested_exponentially_is_listed_at_once(
    tmp_path: Path,
) -> None:
    tree: list[object] = [torch.zeros(1)]
    for _ in range(60):
        tree = [tree, tree]
    torch.save(tree, tmp_path / "deep.pt")
    assert len(tensors_of(tmp_path / "deep.pt")) == 1


@pytest.mark.parametrize("name", ["weights.bin", "notes.pt", "empty.pkl"])
def test_other_content_with_the_suffix_of_a_pickle_is_no_pickle(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"" if name == "empty.pkl" else b"plain text, no opcodes")
    assert identify(tmp_path / name) is None


def test_the_header_of_a_gguf_file_is_read(tmp_path: Path) -> None:
    file = tmp_path / "model.bin"
    file.write_bytes(gguf_header())
    found = identify(file)
    assert found is not None
    assert "GGUF" in found.title
    rows = dict(found.describe().details)
    assert (rows["name"], rows["architecture"]) == ("Tiny Llama", "llama")
    assert rows["context length"] == "2048"
    assert tensors_of(file) == [
        ("blk.0.attn_q.weight", "Q4_K", (4, 256)),
        ("output_norm.weight", "F32", (256,)),
    ]


@pytest.mark.parametrize("kept", range(4, len(gguf_header()), 97))
def test_a_truncated_gguf_file_is_an_error_with_its_name(tmp_path: Path, kept: int) -> None:
    file = tmp_path / "model.gguf"
    file.write_bytes(gguf_header()[:kept])
    found = identify(file)
    assert found is not None
    with pytest.raises(ModelError, match=r"model\.gguf: it is truncated, or its GGUF header"):
        found.describe()


def zip_file(names: list[str]) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for name in names:
            archive.writestr(name, b"x")
    return content.getvalue()


def tar_file() -> bytes:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("a"))
    return content.getvalue()


def arrays(save: Callable[..., None], *values: object, **named: object) -> bytes:
    content = io.BytesIO()
    save(content, *values, **named)
    return content.getvalue()


@pytest.mark.parametrize(
    ("name", "content", "title"),
    [
        ("a.engine", b"ftrt" + bytes(60), "TensorRT engine"),
        ("a.plan", b"vtrt" + bytes(60), "TensorRT engine"),
        ("yolo.engine", b"\x10\x00\x00\x00" + b"{'stride': 32 }!ftrt" + bytes(60), "TensorRT"),
        ("a.pb", tiny_onnx(), "ONNX graph whose name"),
        ("a.tflite", b"\x1c\x00\x00\x00TFL3" + bytes(8), "TensorFlow Lite"),
        ("a.ort", b"\x1c\x00\x00\x00ORTM" + bytes(8), "ONNX Runtime"),
        ("a.pte", b"\x1c\x00\x00\x00ET12" + bytes(8), "ExecuTorch"),
        ("a.h5", b"\x89HDF\r\n\x1a\n" + bytes(8), "HDF5"),
        ("a.keras", zip_file(["config.json", "model.weights.h5"]), "Keras"),
        ("a.npz", arrays(np.savez, x=np.zeros(2)), "NumPy arrays"),
        ("a.npy", arrays(np.save, np.zeros(2)), "NumPy array"),
        ("a.xml", b'<?xml version="1.0"?>\n<net name="x" version="11">', "OpenVINO"),
        ("flax_model.msgpack", b"\x82\xa1a\x01\xa1b\x02", "Flax"),
        ("a.mnn", bytes(16), "MNN"),
        ("a.mlmodel", b"\x08\x04" + bytes(8), "Core ML"),
        ("a.param", b"7767517\n1 1\n", "ncnn"),
        ("model.safetensors", b"version https://git-lfs.github.com/spec/v1\n", "Git LFS"),
        ("model.pt", b"<!DOCTYPE html><html>", "HTML"),
        ("a.zip", zip_file(["a.txt"]), "zip archive"),
        ("a.nemo", tar_file(), "tar archive"),
        ("a.tar.gz", b"\x1f\x8b" + bytes(8), "gzip"),
        ("a.tar.zst", b"\x28\xb5\x2f\xfd" + bytes(8), "Zstandard"),
    ],
)
def test_a_file_is_recognized_by_its_content(
    tmp_path: Path, name: str, content: bytes, title: str
) -> None:
    (tmp_path / name).write_bytes(content)
    found = identify(tmp_path / name)
    assert found is not None
    assert title in found.title
    with pytest.raises(ModelError, match="no pass reads it"):
        recognize(tmp_path / name)


def test_a_file_of_another_kind_is_no_onnx_graph_whatever_its_name(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(gguf_header())
    with pytest.raises(ModelError, match="is a GGUF file"):
        recognize(tmp_path / "model.onnx")


def test_safetensors_are_told_apart_by_names_and_surroundings(tmp_path: Path) -> None:
    lone = write_weights(tmp_path / "lone" / "weights.safetensors")
    lora = write_weights(tmp_path / "lora" / "adapter_model.safetensors", LORA)
    part = write_weights(tmp_path / "checkpoint" / "model-00001-of-00002.safetensors")
    write_json(part.parent / "config.json", {"model_type": "llama"})
    titles = [found.title for path in (lone, lora, part) if (found := identify(path))]
    assert [title.split("(")[0].strip() for title in titles] == [
        "a safetensors file: weights without the config.json that describes their model",
        "the weights of a LoRA adapter",
        "a weight file of a checkpoint",
    ]
    assert tensors_of(lone) == [("a", "float32", (3, 2)), ("b", "float16", (2, 1))]
    with pytest.raises(ModelError) as caught:
        recognize(part)
    assert str(part.parent) in str(caught.value.remedy)


def folder(root: Path, files: dict[str, object]) -> Path:
    for name, tree in files.items():
        write_json(root / name, tree)  # type: ignore[arg-type]
    return root


@pytest.mark.parametrize(
    ("files", "title"),
    [
        (
            {
                "model_index.json": {"_class_name": "Flux", "unet": ["diffusers", "UNet"]},
                "unet/config.json": {"_class_name": "UNet", "_diffusers_version": "0.30"},
            },
            "pipeline of diffusers",
        ),
        ({"config.json": {"_class_name": "UNet", "_diffusers_version": "0.30"}}, "diffusers"),
        (
            {
                "modules.json": [
                    {"type": "sentence_transformers.models.Transformer", "path": "0_Transformer"}
                ],
                "0_Transformer/config.json": {"model_type": "bert"},
            },
            "sentence-transformers",
        ),
        ({"params.json": {"dim": 8, "n_layers": 2}, "consolidated.00.pth": {}}, "consolidated"),
        ({"saved_model.pb": {}}, "TensorFlow"),
    ],
)
def test_a_folder_is_recognized_by_its_files(
    tmp_path: Path, files: dict[str, object], title: str
) -> None:
    found = identify(folder(tmp_path, files))
    assert found is not None
    assert title in found.title
    with pytest.raises(ModelError, match="no pass reads it"):
        recognize(tmp_path)


@pytest.mark.parametrize(
    "inner",
    ["models--org--name/snapshots/abc123", "checkpoint-500", "hub/models--a--b/snapshots/1"],
)
def test_a_folder_of_checkpoints_names_the_paths_inside(tmp_path: Path, inner: str) -> None:
    write_json(tmp_path / inner / "config.json", {"model_type": "llama"})
    found = identify_any(tmp_path)
    assert found is not None
    assert found.describe().inner == (tmp_path / inner,)
    with pytest.raises(ModelError) as caught:
        recognize(tmp_path)
    assert str(tmp_path / inner) in str(caught.value.remedy)


def test_a_folder_of_single_files_names_them(tmp_path: Path) -> None:
    (tmp_path / "a.gguf").write_bytes(gguf_header())
    (tmp_path / "encoder.onnx").write_bytes(tiny_onnx())
    found = identify_any(tmp_path)
    assert found is not None
    assert [path.name for path in found.describe().inner] == ["a.gguf", "encoder.onnx"]


@pytest.mark.parametrize("tree", [{}, {"name": "package"}, []])
def test_a_folder_without_a_model_is_not_recognized(tmp_path: Path, tree: object) -> None:
    (tmp_path / "package.json").write_text(json.dumps(tree))
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "readme.txt").write_text("text")
    assert identify_any(tmp_path) is None
    with pytest.raises(ModelError, match=r"it holds package\.json, sub. Looked for:"):
        recognize(tmp_path)
