"""Take a small random checkpoint of every class through every pass that applies, and print a table.

    python -m benchmarks.intake [--only gpt2 bert] [--kinds decoder] [--steps awq] [--work FOLDER]

A class counts as accepted if `plan` exits with 0. `export-onnx` compares the graph with torch on
real samples and fails if they differ, so a step that ends well is right. For `awq`, the mean KL
divergence from the float model on other samples is compared with that of rounding to nearest.
Pruned and packed checkpoints are loaded again by `from_pretrained`. Results are kept in FOLDER as
they come, so an interrupted run continues.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import yaml
from rich.console import Console
from rich.table import Table

from benchmarks.intake.cases import Case, cases, write_samples
from benchmarks.intake.invocation import attempt, invoke
from benchmarks.intake.techniques import EXPORT, TECHNIQUES


@contextmanager
def other_weights(number: int) -> Iterator[None]:
    """Let classes draw other random weights; 0 is the usual ones."""
    seed = torch.manual_seed
    with patch.object(torch, "manual_seed", lambda value: seed(value + 1000 * number)):
        yield


def take(case: Case, work: Path, steps: list[str], weights: int = 0) -> dict[str, dict[str, str]]:
    """Return the outcome of each technique on a class."""
    folder = work / case.name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    with other_weights(weights):
        case.write(folder / "model")
    data: dict[str, Any] = {}

    def plan() -> str:
        data.update(write_samples(case, folder))
        document = {"version": 1, "name": "plan", "model": {"path": "model"}, "passes": []}
        document["data"] = {"samples": data}
        document["passes"] = [EXPORT]
        (folder / "plan.yaml").write_text(yaml.safe_dump(document, sort_keys=False))
        invoke("plan", folder / "plan.yaml", "--output-dir", folder / "artifacts")
        return "accepted"

    results = {"plan": attempt(plan)}
    for step in case.steps:
        if results["plan"]["outcome"] == "ok" and (not steps or step in steps):
            results[step] = attempt(lambda step=step: TECHNIQUES[step](folder, data))
    shutil.rmtree(folder / "artifacts", ignore_errors=True)
    return results


def print_table(results: Mapping[str, Any], selected: list[Case]) -> None:
    """Print a row for each class, and the sums by kind."""
    names = ("plan", *TECHNIQUES)
    table = Table("class", "kind", *names)
    marks = {"ok": "✓", "refused": "refused", "crashed": "CRASHED"}
    for case in selected:
        row = results.get(case.name, {})
        cells = [row.get(name, {}) for name in names]
        texts = [
            f"{marks[cell['outcome']]} {cell['detail'][:40] if cell['outcome'] == 'ok' else ''}"
            if cell
            else ""
            for cell in cells
        ]
        table.add_row(case.name + ("" if case.noted else " *"), case.kind, *texts)
    console = Console(width=180)
    console.print(table)
    for kind in dict.fromkeys(case.kind for case in selected):
        for noted in (True, False):
            group = [case for case in selected if case.kind == kind and case.noted is noted]
            counts = {
                name: (
                    sum(
                        results.get(case.name, {}).get(name, {}).get("outcome") == "ok"
                        for case in group
                    ),
                    sum(name in results.get(case.name, {}) for case in group),
                )
                for name in names
            }
            parts = [f"{name} {ok}/{tried}" for name, (ok, tried) in counts.items() if tried]
            if parts:
                where = "of the notes" if noted else "beyond (*)"
                console.print(f"{kind}, {where}: {', '.join(parts)}")
    cached = sum(
        "cache" in row.get("export-onnx", {}).get("detail", "")
        for row in (results.get(case.name, {}) for case in selected)
    )
    console.print(f"graphs with a key-value cache: {cached}")
    for case in selected:
        for name, cell in results.get(case.name, {}).items():
            if cell["outcome"] != "ok":
                console.print(f"{case.name} {name}: {cell['outcome']}: {cell['detail'][:400]}")


def main() -> None:
    """Run the classes that are not done yet, and print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", nargs="*", default=[])
    parser.add_argument("--kinds", nargs="*", default=[])
    parser.add_argument("--steps", nargs="*", default=[])
    parser.add_argument("--work", type=Path, default=Path("intake-work"))
    parser.add_argument("--weights", type=int, default=0, help="number of another set of weights")
    parser.add_argument("--print", action="store_true", help="print kept results alone")
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.work.mkdir(parents=True, exist_ok=True)
    file = options.work / "results.json"
    results = json.loads(file.read_text()) if file.is_file() else {}
    selected = [
        case
        for case in cases()
        if (not options.only or case.name in options.only)
        and (not options.kinds or case.kind in options.kinds)
    ]
    for case in selected:
        done = results.get(case.name, {})
        wanted = [step for step in options.steps or case.steps if step in case.steps]
        if options.print or (done and all(step in done for step in wanted)):
            continue
        outcome = take(case, options.work, options.steps, options.weights)
        results[case.name] = {**done, **outcome}
        file.write_text(json.dumps(results, indent=1))
        states = {name: cell["outcome"] for name, cell in results[case.name].items()}
        sys.stderr.write(f"{case.name}: {states}\n")
    print_table(results, selected)


if __name__ == "__main__":
    main()
