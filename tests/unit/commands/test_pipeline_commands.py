"""The commands on pipelines as a user types them, each in a process of its own."""

from __future__ import annotations

import json
from pathlib import Path

from tests.support.cli import cli
from tests.support.tiny_files import draw_pictures


def test_a_run_can_be_repeated_inspected_and_verified(toy_pipeline: Path) -> None:
    home = toy_pipeline.parent
    first = cli("run", toy_pipeline.name, cwd=home)
    assert first.returncode == 0, first.stderr
    run = json.loads(cli("run", toy_pipeline.name, "--json", cwd=home).stdout)
    assert [row["step"] for row in run["ladder"]["rows"]] == ["source", "first", "second"]
    assert all(row["cached"] for row in run["ladder"]["rows"])
    records = list((home / "artifacts" / "runs").iterdir())
    assert len(records) == 1, "a run that changes nothing adds no record"
    assert set(json.loads(cli("verify", "--json", cwd=home).stdout).values()) == {None}
    a, b = (path for path in sorted((home / "artifacts").glob("toy-*")))
    for arguments in (
        ["show"],
        ["show", a],
        ["compare", a, b],
        ["report"],
        ["verify"],
        ["gc", "--dry-run"],
        ["doctor"],
    ):
        done = cli(*arguments, cwd=home)
        assert done.returncode == 0, (arguments, done.stderr)
        json.loads(cli(*arguments, "--json", cwd=home).stdout)


def test_one_pass_runs_on_a_model_and_on_an_artifact(toy_pipeline: Path) -> None:
    home = toy_pipeline.parent
    dry = cli("pass", "toy", "model", "--set", "rounds=2", "--dry-run", cwd=home)
    assert dry.returncode == 0, dry.stderr
    assert not (home / "artifacts").exists()
    done = cli("pass", "toy", "model", "--set", "rounds=2", "--json", cwd=home)
    assert done.returncode == 0, done.stderr
    artifact = json.loads(done.stdout)["ladder"]["rows"][-1]["name"]
    on_artifact = cli("pass", "toy", f"artifacts/{artifact}", cwd=home)
    assert on_artifact.returncode == 0, on_artifact.stderr
    wrong = cli("pass", "toy", "model", "--set", "roundz=2", cwd=home)
    assert wrong.returncode == 2
    assert "rounds" in wrong.stderr


def test_init_writes_a_valid_pipeline(tmp_path: Path) -> None:
    assert cli("init", tmp_path).returncode == 0
    assert cli("init", tmp_path).returncode == 2, "an existing file is not overwritten"
    assert cli("validate", tmp_path / "pipeline.yaml").returncode == 0
    json.loads((tmp_path / "pipeline.schema.json").read_text())
    assert cli("init", tmp_path / "images", "--starter", "images").returncode == 0
    done = cli("validate", tmp_path / "images" / "pipeline.yaml")
    assert done.returncode == 2, "the user has to add the pictures"
    assert "data/train" in done.stderr


def test_plan_and_validate_print_what_a_data_set_skips(tmp_path: Path) -> None:
    draw_pictures(tmp_path / "pictures", 2)
    (tmp_path / "pictures" / "labels.csv").write_text("x")
    file = tmp_path / "pipeline.yaml"
    file.write_text(
        "version: 1\nname: p\nmodel: {family: image-classifier, preset: tiny}\n"
        "data: {train: {source: images, path: pictures, image_size: 16}}\n"
        "passes: [{type: train, validation: null}]\n"
    )
    for command in ("plan", "validate"):
        assert "skipped (1): labels.csv" in cli(command, file).stdout
    assert "labels.csv" in json.loads(cli("plan", file, "--json").stdout)["notes"][0]


def test_validate_prints_the_steps_of_each_file(toy_pipeline: Path) -> None:
    done = cli("validate", toy_pipeline)
    assert done.stdout == f"{toy_pipeline} is valid: source → first → second\n"
    steps = json.loads(cli("validate", toy_pipeline, "--json").stdout)
    assert steps == {str(toy_pipeline): ["source", "first", "second"]}
