"""Build FP16 and INT8 TensorRT engines of the public ONNX files, and compare them with the files.

    python -m benchmarks.onnx_in.engines FOLDER [--models NAME …] [--json FILE]

FOLDER/data holds models and samples, as `python -m benchmarks.onnx_in` wrote them. Each pipeline is
the one of `init --from model.onnx --data calibration.npz`, without its measurements: the engine in
FP16 is its `tensorrt` step, and the one in INT8 the same step on the graph of an `optimize-onnx`
step with `target: tensorrt`. The figures are those of the artifacts' manifests: the size of the
engine and of the weights in its graph, and the difference from the float file on the samples,
measured on the graph that the engine was built from. tensorrt-rtx builds without a GPU.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from benchmarks.onnx_in.prepare import MODELS

_ENGINES = ("fp16", "int8")
_MEASURES = ("relative_error", "max_abs")
_TIMEOUT_SECONDS = 900
Step = dict[str, Any]


def run_cli(arguments: list[str], folder: Path) -> tuple[str, str | None]:
    """Return the standard output of a command, and its error message if it fails."""
    command = [sys.executable, "-m", "cli", *arguments]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_TIMEOUT_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        return "", f"not done after {_TIMEOUT_SECONDS} s"
    if not done.returncode:
        return done.stdout, None
    (folder / "error.txt").write_text(done.stderr, encoding="utf-8")
    return "", " ".join(done.stderr.rpartition("error:")[2].split())


def starter(data: Path, folder: Path) -> dict[str, Any]:
    """Return the pipeline that `init --from` writes for a model.

    Raises:
        SystemExit: it writes none.
    """
    arguments = [
        "init",
        "--from",
        str(data / "model.onnx"),
        "--data",
        str(data / "calibration.npz"),
    ]
    _, error = run_cli([*arguments, str(folder)], folder)
    if error is not None:
        raise SystemExit(error)
    pipeline: dict[str, Any] = yaml.safe_load((folder / "pipeline.yaml").read_text("utf-8"))
    return pipeline


def steps(pipeline: Mapping[str, Any], engine: str) -> list[Step]:
    """Return the steps up to one engine; none if the pipeline builds no engines."""
    build = next((step for step in pipeline["passes"] if step["type"] == "tensorrt"), None)
    if build is None:
        return []
    build = build | {"name": "engine", "precision": engine}
    if engine == "fp16":
        return [build | {"from": "source"}]
    calibration = {"data": "samples"}
    optimize = {"type": "optimize-onnx", "name": "integers", "precision": engine}
    optimize |= {"target": "tensorrt", "calibration": calibration}
    return [optimize, build | {"from": "integers"}]


def build(name: str, folder: Path, engine: str) -> dict[str, Any]:
    """Return the figures of one engine, or why there is none."""
    data, work = folder / "data" / name, folder / "engines" / name / engine
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    pipeline = starter(data, work)
    chosen = steps(pipeline, engine)
    if not chosen:
        return {"failed": "`init` writes no `tensorrt` step"}
    pipeline |= {"passes": chosen}
    pipeline.pop("evaluate", None)
    file = work / "engine.yaml"
    file.write_text(yaml.safe_dump(pipeline, sort_keys=False), encoding="utf-8")
    output, error = run_cli(["run", str(file), "-o", str(work / "artifacts"), "--json"], work)
    if error is not None:
        return {"failed": error}
    rows = {row["step"]: row["name"] for row in json.loads(output)["ladder"]["rows"]}
    return figures(work / "artifacts", rows)


def figures(store: Path, rows: Mapping[str, str]) -> dict[str, Any]:
    """Return sizes and differences of an engine by the manifests of the steps."""
    summary = manifest(store / rows["engine"])["summary"]
    against = summary["against_parent"]
    graph = store / rows["engine"] / "model" / "model.onnx"
    found = {"bytes": next(iter(summary["engine_bytes"].values()))}
    found |= {"graph_bytes": graph.stat().st_size}
    found |= {name: against[name] for name in _MEASURES}
    if "integers" in rows:  # the step of the engine compares it with the integers
        outputs = manifest(store / rows["integers"])["summary"]["against_parent"].values()
        found |= {name: max(output[name] for output in outputs) for name in _MEASURES}
    return found


def manifest(artifact: Path) -> dict[str, Any]:
    """Return the manifest of an artifact."""
    content: dict[str, Any] = json.loads((artifact / "manifest.json").read_text("utf-8"))
    return content


def cell(found: Mapping[str, Any]) -> str:
    """Return the cell of one engine."""
    if "failed" in found:
        return f"none: {found['failed'][:300]}"
    parts = [f"{found['bytes'] / 1e6:.2f} MB", f"{found['graph_bytes'] / 1e6:.2f} MB"]
    parts += [f"{found['relative_error']:.4f}", f"{found['max_abs']:.2g}"]
    return " · ".join(parts)


def main() -> None:
    """Print a row for each model."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    options = parser.parse_args()
    folder, results = options.folder.resolve(), {}
    print("| model | FP16 engine | INT8 engine |\n|---|---|---|")
    for name in options.models:
        model, size = MODELS[name], (folder / "data" / name / "model.onnx").stat().st_size
        results[name] = {engine: build(name, folder, engine) for engine in _ENGINES}
        cells = " | ".join(cell(results[name][engine]) for engine in _ENGINES)
        label = f"{name}: {model.field}, {model.exporter}, {size / 1e6:.1f} MB"
        print(f"| {label} | {cells} |", flush=True)
    if options.json:
        options.json.write_text(json.dumps(results, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
