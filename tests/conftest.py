"""What every test may use: the toy plugin, and a small pipeline over it."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest

PLUGINS = Path(__file__).parent / "plugins"
sys.path.insert(0, str(PLUGINS))
signal.signal(
    signal.SIGINT, signal.default_int_handler
)  # who starts pytest in the background hands on that it is ignored
os.environ["PYTHONPATH"] = os.pathsep.join(
    filter(None, [str(PLUGINS), os.environ.get("PYTHONPATH")])
)


def tiny_onnx(value: float = 1.0) -> bytes:
    """The ONNX file of x + value."""
    from onnx import TensorProto, helper

    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in ("x", "y")]
    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "c"], ["y"])],
        "tiny",
        ends[:1],
        ends[1:],
        [helper.make_tensor("c", TensorProto.FLOAT, [1], [value])],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)]).SerializeToString()


def draw_pictures(folder: Path, each: int) -> None:
    """Noise of two levels, as 16x16 PNG files in the folders ``dark`` and ``light``, ``each`` of them."""
    import numpy as np
    from PIL import Image

    draw = np.random.default_rng(0)
    for name, level in (("dark", 60), ("light", 190)):
        (folder / name).mkdir(parents=True)
        for number in range(each):
            pixels = (level + draw.integers(-50, 50, (16, 16, 3))).astype(np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number}.png")


@pytest.fixture
def toy_pipeline(tmp_path: Path) -> Path:
    """A pipeline of two toy steps over a given file; nothing is measured."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model.onnx").write_bytes(tiny_onnx())
    file = tmp_path / "pipeline.yaml"
    file.write_text(
        "version: 1\n"
        "name: toy\n"
        "model: {path: model}\n"
        "passes:\n"
        "  - {type: toy, name: first}\n"
        "  - {type: toy, name: second, rounds: 3}\n"
    )
    return file
