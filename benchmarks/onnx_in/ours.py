"""`optimize-onnx` on one ONNX file, on the command line as a user runs it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

OURS: dict[str, dict[str, Any]] = {
    "ours int8": {"precision": "int8"},
    "ours int8 weights": {"precision": "int8", "weight_only": True},
    "ours int4": {"precision": "int4"},
    "ours fp16": {"precision": "fp16"},
}
"""Name in the table, and fields of the step."""


def pipeline(folder: Path, fields: dict[str, Any], num_samples: int) -> dict[str, Any]:
    """Return a pipeline of the one pass."""
    calibration = {"data": "samples", "num_samples": num_samples, "batch_size": 1}
    step = {"type": "optimize-onnx", "name": "optimized", **fields}
    return {
        "version": 1,
        "name": "onnx-in",
        "threads": 2,
        "model": {"path": str(folder / "model.onnx")},
        "data": {"samples": {"source": "arrays", "path": str(folder / "calibration.npz")}},
        "passes": [step | {"calibration": calibration}],
    }


def optimize(
    tool: str, folder: Path, out: Path, num_samples: int, timeout_seconds: int
) -> str | None:
    """Write the model; return the message if the pass refuses it.

    Raises:
        subprocess.TimeoutExpired: it takes too long.
    """
    file = out.with_suffix(".pipeline.json")
    file.write_text(
        json.dumps(pipeline(folder, OURS[tool], num_samples), indent=1), encoding="utf-8"
    )
    store = out.with_suffix(".artifacts")
    shutil.rmtree(store, ignore_errors=True)  # its models may be those of an earlier revision
    command = [sys.executable, "-m", "cli", "run", str(file), "-o", str(store), "--json"]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=timeout_seconds, check=False
    )
    if done.returncode:
        return " ".join(done.stderr.rpartition("error:")[2].split())
    row = next(r for r in json.loads(done.stdout)["ladder"]["rows"] if r["step"] == "optimized")
    shutil.copy(store / row["name"] / "model" / "model.onnx", out)
    return None
