"""The commands `doctor` and `passes`, each in a process of its own."""

from __future__ import annotations

import json
from pathlib import Path

from tests.support.cli import cli


def test_doctor_checks_a_model_against_every_pass(toy_pipeline: Path) -> None:
    home = toy_pipeline.parent
    diagnosis = json.loads(cli("doctor", "--model", "model", "--json", cwd=home).stdout)
    suitable = {row["name"]: row["suitable"] for row in diagnosis["passes"]}
    assert suitable["toy"]
    assert not suitable["train"]
    printed = " ".join(cli("doctor", "--model", "model", cwd=home).stdout.split())
    assert "toy ✓" in printed


def test_explain_checks_a_model_against_one_pass(toy_pipeline: Path) -> None:
    explained = cli("passes", "explain", "train", "--model", "model", cwd=toy_pipeline.parent)
    assert explained.returncode == 0, explained.stderr
    assert "reads torch, not onnx" in explained.stdout


def test_passes_lists_each_group_of_plugins() -> None:
    groups = {entry["group"] for entry in json.loads(cli("passes", "--json").stdout)}
    assert groups == {"pass", "data source", "model family", "model format"}
    unknown = cli("passes", "explain", "prun")
    assert unknown.returncode == 2
    assert "prune" in unknown.stderr
