"""Ask the float model and its INT4 form the same questions, and print the answers side by side.

    python examples/smollm2/questions.py STORE [--tokens 60]

STORE holds a run of demo.yaml. Both models answer greedily, each question in a process of its own,
with `autoglm-compress generate`; sizes and perplexities are those that the run has measured.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from rich.text import Text

QUESTIONS = (
    "What is the capital of France?",
    "Name three primary colours.",
    "Write one sentence about the sea.",
    "Why do cats purr?",
    "Turn this into a question: You like tea.",
)
STEPS = ("source", "onnx")


def call(*arguments: object) -> Any:
    """Run autoglm-compress with --json and return what it prints."""
    command = [sys.executable, "-m", "cli", *map(str, arguments), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr)
    return json.loads(done.stdout)


def heading(row: dict[str, Any], answers: list[dict[str, Any]]) -> str:
    """Return size, perplexity and speed of a model."""
    metrics = row["metrics"]
    size = metrics["size_bytes"]["value"] / 1e6
    speed = statistics.median(answer["decode_tokens_per_second"] or 0 for answer in answers)
    return (
        f"{row['step']}: {size:.0f} MB, perplexity {metrics['perplexity']['value']:.1f}, "
        f"{speed:.0f} tokens/s"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("store", type=Path)
    parser.add_argument("--tokens", type=int, default=60, help="tokens of an answer")
    options = parser.parse_args()
    rows = {row["step"]: row for row in call("report", options.store)["rows"]}
    answers: dict[str, list[dict[str, Any]]] = {step: [] for step in STEPS}
    console = Console()
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task("answering", total=len(STEPS) * len(QUESTIONS))
        for question in QUESTIONS:
            for step in STEPS:
                artifact = options.store / rows[step]["name"]
                limit = ("--max-tokens", options.tokens)
                answers[step].append(call("generate", artifact, "--prompt", question, *limit))
                progress.advance(task)
    table = Table("question", *(heading(rows[step], answers[step]) for step in STEPS))
    table.show_lines = True
    for index, question in enumerate(QUESTIONS):
        table.add_row(question, *(Text(answers[step][index]["text"].strip()) for step in STEPS))
    console.print(table)


if __name__ == "__main__":
    main()
