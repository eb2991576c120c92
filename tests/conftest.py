"""What every test may use: the toy plugin, and a small pipeline over it."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

PLUGINS = Path(__file__).parent / "plugins"
sys.path.insert(0, str(PLUGINS))
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(PLUGINS), os.environ.get("PYTHONPATH")]))


@pytest.fixture
def toy_pipeline(tmp_path: Path) -> Path:
    """A pipeline of two toy steps over a given file; nothing is measured."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model.onnx").write_bytes(b"a model")
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
