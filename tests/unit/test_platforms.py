"""`plan`, `validate` and `show` need neither fcntl nor the C library; `run` is refused without."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from compressor.errors import CompressError
from compressor.evaluation.process import require_linux

WITHOUT_LINUX = """
import ctypes, sys
sys.modules["fcntl"] = None  # `import fcntl` raises ImportError, as on Windows
CDLL = ctypes.CDLL
class NoSystemLibrary(CDLL):
    def __init__(self, name, *arguments, **options):
        if name is None:
            raise OSError("no C library with prctl and malloc_trim")
        super().__init__(name, *arguments, **options)
ctypes.CDLL = NoSystemLibrary
import cli
cli.main()
"""


def run_without_linux(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Run the command line in a process that has no fcntl module and no C library."""
    command = [sys.executable, "-c", WITHOUT_LINUX, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_validate_and_plan_work_without_fcntl(toy_pipeline: Path, tmp_path: Path) -> None:
    validated = run_without_linux("validate", toy_pipeline)
    assert validated.returncode == 0, validated.stderr
    planned = run_without_linux("plan", toy_pipeline, "-o", tmp_path / "store", "--json")
    assert planned.returncode == 0, planned.stderr
    names = [step["name"] for step in json.loads(planned.stdout)["steps"]]
    assert names == ["source", "first", "second"]


def test_show_works_without_fcntl(toy_pipeline: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    command = [sys.executable, "-m", "cli", "run", str(toy_pipeline), "-o", str(store)]
    subprocess.run(command, check=True, capture_output=True)
    artifact = next(store.glob("toy-*"))
    for target in (artifact, store, "autoglm-phone:9b"):
        shown = run_without_linux("show", target, "--json")
        assert shown.returncode == 0, shown.stderr
        assert json.loads(shown.stdout)


def test_run_is_refused_without_fcntl_before_anything_is_built(
    toy_pipeline: Path, tmp_path: Path
) -> None:
    refused = run_without_linux("run", toy_pipeline, "-o", tmp_path / "store")
    assert refused.returncode == 1
    assert "POSIX file locks" in refused.stderr
    assert "run on Linux" in refused.stderr
    assert "Traceback" not in refused.stderr
    assert not (tmp_path / "store").exists()


def test_measuring_is_refused_off_linux(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(CompressError, match="measuring needs Linux"):
        require_linux()
