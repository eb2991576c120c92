"""Time ``history`` on a store of many runs: the first reading, and with its index.

    python -m benchmarks.history [--runs 2000]

The runs have the ladder of a phone pipeline: five steps, 14 metrics each. Prints seconds of the
whole command, in a process of its own; the median of five with the index.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from compressor.artifacts.runs import RunRecord, RunStep, save_run
from compressor.artifacts.store import Store
from compressor.reports.pages.write import write_run_reports
from tests.support.reports import run_report

ROOT = Path(__file__).parents[1]


def fill(root: Path, runs: int) -> None:
    """Record runs that differ in a manifest."""
    report = run_report(root / "artifacts")
    first, *copies = (_record(number) for number in range(runs))
    with save_run(Store(root), first) as (folder, staged):
        write_run_reports(staged, report, folder)
    for record in copies:
        with save_run(Store(root), record) as (_, staged):
            for file in folder.glob("*.*"):
                if file.name != "run.json":
                    (staged / file.name).write_bytes(file.read_bytes())


def _record(number: int) -> RunRecord:
    step = RunStep(name="onnx", artifact="onnx", id="0" * 64, manifest=str(number), parent=None)
    return RunRecord(pipeline="phone", command="run", steps=(step,), gates=())


def seconds(root: Path) -> float:
    """Return the seconds of one ``history``."""
    start = time.perf_counter()
    command = [sys.executable, "-m", "cli", "history", "-o", str(root)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd=ROOT)
    return time.perf_counter() - start


def main() -> None:
    """Print the times."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=2000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "store"
        fill(root, options.runs)
        first = seconds(root)
        again = statistics.median(seconds(root) for _ in range(5))
        print(f"{options.runs} runs: {first:.2f} s without an index, {again:.2f} s with it")


if __name__ == "__main__":
    main()
