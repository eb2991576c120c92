"""The commands on artifacts as a user types them, each in a process of its own."""

from __future__ import annotations

import json
from pathlib import Path

from tests.support.cli import cli


def test_gc_removes_what_no_last_run_needs(toy_pipeline: Path) -> None:
    home = toy_pipeline.parent
    changed = ["run", toy_pipeline, "--set", "passes[1].rounds=4"]
    assert cli("run", toy_pipeline, cwd=home).returncode == 0
    assert cli(*changed, cwd=home).returncode == 0
    listed = cli("gc", "--dry-run", cwd=home)
    assert "would remove 1 path, " in listed.stdout
    removed = json.loads(cli("gc", "--json", cwd=home).stdout)["paths"]
    assert len(removed) == 1
    assert cli(*changed, cwd=home).returncode == 0


def test_show_prints_the_size_of_a_preset() -> None:
    sizes = json.loads(cli("show", "autoglm-phone:9b", "--json").stdout)
    assert sizes["parameters"] <= 9_000_000_000
    targets = {
        "text_encoder": 3.2e9,
        "text_decoder": 3.2e9,
        "vision": 1.4e9,
        "speech": 0.8e9,
        "fusion": 0.4e9,
    }
    for part, target in targets.items():
        assert abs(sizes["parts"][part] / target - 1) < 0.03, part
    assert cli("show", "autoglm-phone:9b").returncode == 0
    assert cli("show", "autoglm-phone:9c").returncode == 2


def test_show_reports_on_any_model(toy_pipeline: Path) -> None:
    home = toy_pipeline.parent
    report = json.loads(cli("show", "model", "--json", cwd=home).stdout)
    assert report["format"] == "onnx"
    suitable = {row["name"]: row["suitable"] for row in report["passes"]}
    assert suitable["toy"]
    assert not suitable["train"]
    printed = cli("show", "model/model.onnx", cwd=home)
    assert printed.returncode == 0, printed.stderr
    assert "Format" in printed.stdout
