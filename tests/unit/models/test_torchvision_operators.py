"""torchvision, and what imports it, where its native library does not load."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

PACKAGE = """
import torch


@torch.library.register_fake("torchvision::nms")
def shape(dets, scores, iou_threshold):
    return dets.new_empty(0)
"""
SCRIPT = """
import sys
import compressor.models
assert "torch" not in sys.modules
import torchvision
assert torchvision.shape
"""


def test_torchvision_is_imported_whoever_imports_it(tmp_path: Path) -> None:
    package = tmp_path / "torchvision"
    package.mkdir()
    (package / "__init__.py").write_text(PACKAGE)
    (package / "_C.so").write_bytes(b"for another torch")
    run = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(tmp_path)!r}){SCRIPT}"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
