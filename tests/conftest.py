"""Fixtures of all tests: the toy plugin on the path, and a small pipeline that uses it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import settings

from compressor.config.permission import CODE_VARIABLE
from compressor.evaluation import process
from tests.support.cli import workers_address
from tests.support.tiny_files import tiny_onnx
from tests.support.warm_workers import use_warm_workers

PLUGINS = Path(__file__).parent / "plugins"
sys.path.insert(0, str(PLUGINS))
# A shell that starts pytest in the background ignores SIGINT, and child processes inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)
os.environ["PYTHONPATH"] = os.pathsep.join(
    filter(None, [str(PLUGINS), os.environ.get("PYTHONPATH")])
)

use_warm_workers(workers_address)

# The time of an example is that of the machine and of its first imports.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")


@pytest.fixture
def toy_pipeline(tmp_path: Path) -> Path:
    """Write a pipeline of two toy steps over an ONNX file, without measurements."""
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


@pytest.fixture
def cold_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measure in new interpreters, as users do; otherwise forks measure (``warm_workers.py``)."""
    monkeypatch.setattr(process, "subprocess", subprocess)


@pytest.fixture(autouse=True)
def code_is_not_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Start every test without the permission to run code; restore it afterwards."""
    monkeypatch.setenv(CODE_VARIABLE, "")
