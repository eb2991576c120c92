"""Measure distillation on the phone bed: hard labels, soft labels, and feedback, at equal steps.

    python benchmarks/distill.py [--seeds 0 1 2] [--set key=value …]

All students have the example's teacher; each arm changes one property of the example's `distill`
step. Accuracy is measured on the test split: icon families, voices and templates that neither
training nor feedback uses. Everything runs through `autoglm-compress run`, so the arms are
artifacts like any others, and a second call only prints.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

EXAMPLE = Path(__file__).parents[1] / "examples" / "phone" / "pipeline.yaml"
ARMS = ("hard labels", "soft labels", "soft + feedback")


def pipeline(arm: str) -> dict[str, Any]:
    """Return the example's pipeline up to the student, changed for an arm."""
    tree: dict[str, Any] = yaml.safe_load(EXAMPLE.read_text(encoding="utf-8"))
    teacher, student = tree["passes"][:2]
    if arm == "hard labels":
        student["soft_weight"] = 0.0
        student.pop("features", None)
        student.pop("temperature", None)  # of the soft labels
    if arm != "soft + feedback":
        student.pop("feedback", None)
    tree |= {
        "name": "distill-" + arm.replace(" ", "-").replace("+", "and"),
        "passes": [teacher, student],
    }
    tree["evaluate"].pop("latency", None)
    tree.pop("gates", None)
    return tree


def run(arm: str, seed: int, store: Path, sets: list[str]) -> dict[str, float]:
    """Return the test accuracy of one student, overall and by slice."""
    tree = pipeline(arm)
    file = store / "pipelines" / f"{tree['name']}.yaml"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(tree), encoding="utf-8")
    command = [sys.executable, "-m", "cli", "run", str(file), "-o", str(store), "--json"]
    # All seeds share one teacher: it is built first, with seed 0, and named as an artifact.
    teacher = subprocess.run(
        [*command, "--until", "teacher"], check=True, stdout=subprocess.PIPE, text=True
    )
    name = json.loads(teacher.stdout)["ladder"]["rows"][-1]["name"]
    tree["model"] = {"path": str((store / name).resolve()), "measure": False}
    tree["passes"] = tree["passes"][1:]
    file.write_text(json.dumps(tree), encoding="utf-8")
    done = subprocess.run(
        [*command, "--seed", str(seed), *(part for value in sets for part in ("--set", value))],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    metrics = json.loads(done.stdout)["ladder"]["rows"][-1]["metrics"]
    return {name: metric["value"] for name, metric in metrics.items() if name.startswith("top1")}


def main() -> None:
    """Run all arms and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--store", type=Path, default=Path("artifacts/benchmark-distill"))
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        help="override a value of the student step: passes[0].…",
    )
    options = parser.parse_args()
    results = {
        arm: [run(arm, seed, options.store, options.set) for seed in options.seeds] for arm in ARMS
    }
    slices = [name for name in results[ARMS[0]][0] if "×" not in name]
    print(f"test accuracy, median (min–max) of {len(options.seeds)} seeds")
    print(
        f"{'':20}"
        + "".join(f"{name.removeprefix('top1').strip('[]') or 'all':>24}" for name in slices)
        + f"{'gain':>8}"
    )
    base = statistics.median(row["top1"] for row in results[ARMS[0]])
    for arm, rows in results.items():
        cells = ""
        for name in slices:
            values = [100 * row[name] for row in rows]
            cells += f"{statistics.median(values):>10.1f} ({min(values):.1f}–{max(values):.1f})"
        gain = 100 * (statistics.median(row["top1"] for row in rows) - base)
        print(f"{arm:20}{cells}{gain:>+8.1f}")


if __name__ == "__main__":
    main()
