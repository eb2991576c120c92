"""Compare `optimize-onnx` with other tools on public ONNX files of wheels, on real inputs.

    python -m venv PEERS
    echo "$PWD/.venv/lib/python3.11/site-packages" > PEERS/lib/python3.11/site-packages/ours.pth
    PEERS/bin/pip install nncf==3.4.0 openvino onnxconverter-common==1.16.0 sympy soundfile
    python -m benchmarks.onnx_in FOLDER --peers PEERS/bin/python [--models NAME …] \
        [--tools NAME …] [--rounds 15] [--threads 2] [--json FILE]

FOLDER caches wheels, samples and models. A tool that fails is reported as failed. Error and cosine
are those of the worst output, relative to the float model, on the evaluation samples, with the
median of the samples' errors; the agreement is of the outputs as the model's package reads them. On
processors without VNNI, where integer products saturate, they are computed with float products
between the rounded values, but for operators that are integer in the file, as those of dynamic
quantization are. Latency is the ratio to the float model in ONNX Runtime on the CPU, median and
range over interleaved rounds in random order.
With as many threads as cores, other load makes single tools many times slower: use one thread
then, whose processor time is measured.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.onnx_in.measure import accuracy, latency, run_all, smoke_test
from benchmarks.onnx_in.model import Model, feeds, open_model
from benchmarks.onnx_in.ours import OURS, optimize
from benchmarks.onnx_in.peers import PEERS
from benchmarks.onnx_in.prepare import MODELS
from benchmarks.onnx_in.table import summary, table
from compressor.runtimes.onnxruntime.inference import ERRORS

_TIMEOUT_SECONDS, _MEMORY_BYTES = 900, 10 << 30


def quantize(tool: str, model: Model, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Return the row of a tool on a model: its file and seconds, or why it failed.

    Models of peers are kept from run to run, since their versions are fixed.
    """
    file = folder / f"{tool.replace(' ', '-')}.onnx"
    log = file.with_suffix(".json")
    if tool in PEERS and log.is_file():
        row: dict[str, Any] = json.loads(log.read_text(encoding="utf-8"))
        return row
    file.unlink(missing_ok=True)
    start = time.perf_counter()
    notes: list[str] = []
    try:
        if tool in PEERS:
            failed = run_peer(tool, folder, file, options.peers, notes)
        else:
            failed = optimize(tool, folder, file, model.calibration, _TIMEOUT_SECONDS)
    except subprocess.TimeoutExpired:
        failed = f"not done after {_TIMEOUT_SECONDS} s"
    row = {"tool": tool, "file": str(file), "seconds": time.perf_counter() - start}
    row["note"] = "; ".join(notes)
    if failed or not file.is_file():
        row["failed"] = failed or "wrote no file"
    log.write_text(json.dumps(row), encoding="utf-8")
    return row


def run_peer(tool: str, folder: Path, file: Path, peers: Path, notes: list[str]) -> str | None:
    """Write the model of a peer; return the last line of its error if it fails."""
    command = [str(peers), "-m", "benchmarks.onnx_in.peers", tool]
    command += [str(folder / "model.onnx"), str(folder / "calibration.npz"), str(file)]
    root = str(Path(__file__).resolve().parents[2])
    with tempfile.TemporaryDirectory() as work:  # some peers leave files in the working folder
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_SECONDS,
            check=False,
            cwd=work,
            env=os.environ | {"PYTHONPATH": root},
            preexec_fn=_limit_memory,
        )
    notes += [line for line in done.stdout.splitlines() if line.startswith(("with ", "without "))]
    if not done.returncode:
        return None
    return (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]


def _limit_memory() -> None:
    resource.setrlimit(resource.RLIMIT_DATA, (_MEMORY_BYTES, _MEMORY_BYTES))


def compare_tools(model: Model, folder: Path, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Return the rows of all tools on a model, the float model first."""
    source = folder / "model.onnx"
    rows: list[dict[str, Any]] = [{"tool": "float", "file": str(source), "seconds": 0.0}]
    rows += [quantize(tool, model, folder, options) for tool in options.tools]
    with np.load(folder / "evaluation.npz") as stored:
        arrays = {name: stored[name] for name in stored}
    expected: list[Any] = []
    for row in rows:
        if failed := row.get("failed") or smoke_test(Path(row["file"]), folder / "evaluation.npz"):
            row["failed"] = failed
            continue
        outputs = compute(row, arrays)
        expected = expected or outputs
        try:
            row |= accuracy(model, expected, outputs)
        except ValueError as error:
            row["failed"] = str(error)
        row["size"] = Path(row["file"]).stat().st_size / source.stat().st_size
    good = [row for row in rows if "failed" not in row]
    if options.rounds:
        files = [Path(row["file"]) for row in good]
        ratios = latency(files, arrays, options.rounds, options.threads)
        for row, ratio in zip(good, ratios, strict=True):
            row |= asdict(ratio)
    return rows


def compute(row: dict[str, Any], arrays: dict[str, Any]) -> list[Any]:
    """Return the outputs of a row's file on samples, and note it if products saturate there.

    Some files of peers break the rules of DequantizeLinear, and run only with integer kernels.
    """
    for exact in (True, False):
        session = open_model(Path(row["file"]), threads=1, exact=exact)
        try:
            return run_all(session, feeds(session, arrays))
        except ERRORS:
            if not exact:
                raise
            row["note"] = "; ".join(filter(None, [row.get("note"), "with saturating products"]))
    raise AssertionError


def parse_options() -> argparse.Namespace:
    """Return the options of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--peers", type=Path, required=True, help="Python with the peers")
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--tools", nargs="*", default=[*OURS, *PEERS], choices=[*OURS, *PEERS])
    parser.add_argument("--rounds", type=int, default=15, help="0 for no latency")
    parser.add_argument("--threads", type=int, default=2, help="of ONNX Runtime, for latency")
    parser.add_argument("--json", type=Path, help="write all figures, per output, to this file")
    return parser.parse_args()


def main() -> None:
    """Print a table for each model."""
    options = parse_options()
    options.folder = options.folder.resolve()
    results = {}
    for name in options.models:
        command = [str(options.peers), "-m", "benchmarks.onnx_in.prepare"]
        subprocess.run([*command, str(options.folder), name], check=True, stdout=sys.stderr)
        results[name] = compare_tools(MODELS[name], options.folder / "data" / name, options)
        print(table(MODELS[name], results[name]), flush=True)
    if len(results) > 1:
        print(summary(results))
    if options.json:
        options.json.write_text(json.dumps(results, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
