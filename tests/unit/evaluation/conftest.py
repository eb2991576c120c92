"""Install the plugin ``tiny`` (a family and a data source), here and in child processes."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from compressor.config import discovery

PLUGIN = Path(__file__).parent / "plugin"


@pytest.fixture(autouse=True)
def tiny_plugin(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    discovery._group.cache_clear()
    monkeypatch.syspath_prepend(PLUGIN)
    monkeypatch.setenv("PYTHONPATH", str(PLUGIN), prepend=":")
    yield
    discovery._group.cache_clear()
    discovery.load.cache_clear()
    sys.modules.pop("tiny", None)


@pytest.fixture
def tiny_model(tiny_plugin: None, tmp_path: Path) -> Path:
    """Save a randomly initialized model of the family ``tiny``."""
    import torch

    family = discovery.load(discovery.FAMILIES, "tiny")
    torch.manual_seed(0)
    family.save(family.build(family.Config()), family.Config(), tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def onnx_model(tmp_path: Path) -> Path:
    """Write an ONNX model whose three logits are the mean of each image channel."""
    from onnx import TensorProto, helper

    image = helper.make_tensor_value_info("image", TensorProto.UINT8, ["batch", 3, 8, 8])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 3])
    nodes = [
        helper.make_node("Cast", ["image"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("GlobalAveragePool", ["float"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["logits"]),
    ]
    graph = helper.make_graph(nodes, "tiny", [image], [logits])
    folder = tmp_path / "onnx"
    folder.mkdir()
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    return folder
