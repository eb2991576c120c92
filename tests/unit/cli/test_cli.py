"""The commands as a user types them, each in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

from tests.support.cli import cli
from tests.unit.graphs.test_onnx_lint import graph

COMMANDS = (
    "run",
    "plan",
    "validate",
    "init",
    "pass",
    "passes",
    "show",
    "compare",
    "report",
    "gate",
    "history",
    "gain",
    "bisect",
    "eval",
    "bench",
    "generate",
    "lint",
    "verify",
    "sign",
    "export",
    "import",
    "sbom",
    "gc",
    "doctor",
    "schema",
)


@pytest.mark.parametrize(
    "arguments", [["--help"], ["plan", "{file}"], ["validate", "{file}"], ["passes"], ["schema"]]
)
def test_light_commands_load_neither_torch_nor_onnx(
    arguments: list[str], toy_pipeline: Path
) -> None:
    code = (
        "import sys, runpy\n"
        "sys.argv = ['autoglm-compress', *sys.argv[1:]]\n"
        "try:\n    import cli; cli.main()\n"
        "except SystemExit as end:\n    assert not end.code, end.code\n"
        "heavy = {'torch', 'onnx', 'onnxruntime', 'onnxscript', 'onnxsim', 'tensorrt', 'transformers', 'matplotlib'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    filled = [argument.format(file=toy_pipeline) for argument in arguments]
    done = subprocess.run(
        [sys.executable, "-c", code, *filled], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_help_names_every_command() -> None:
    done = cli("--help")
    assert done.returncode == 0
    assert all(command in done.stdout for command in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command: str) -> None:
    assert cli(command, "--help").returncode == 0


def test_lint_names_what_a_target_refuses(tmp_path: Path) -> None:
    onnx.save(graph(zero=np.uint8(7)), tmp_path / "graph.onnx")
    refused = cli("lint", tmp_path / "graph.onnx", "--target", "tensorrt")
    assert refused.returncode == 1
    assert "QuantizeLinear round: UINT8 integers" in refused.stdout
    taken = cli("lint", tmp_path / "graph.onnx", "--json")
    assert taken.returncode == 0
    assert json.loads(taken.stdout) == {"target": "onnxruntime", "complaints": []}
    for wrong in (["--target", "toaster"], ["nothing.onnx"]):
        done = cli("lint", *([tmp_path / "graph.onnx"] if wrong[0] == "--target" else []), *wrong)
        assert done.returncode == 2
        assert "error:" in done.stderr
        assert "Traceback" not in done.stderr


def test_a_run_from_start_to_end(toy_pipeline: Path) -> None:
    home = toy_pipeline.parent
    done = cli("run", toy_pipeline.name, cwd=home)
    assert done.returncode == 0, done.stderr
    again = cli("run", toy_pipeline.name, "--json", cwd=home)
    told = json.loads(again.stdout)
    assert [row["step"] for row in told["ladder"]["rows"]] == ["source", "first", "second"]
    assert all(row["cached"] for row in told["ladder"]["rows"])
    assert len(list((home / "artifacts" / "runs").iterdir())) == 1, (
        "a run that changed nothing leaves no second record"
    )
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
        assert cli(*arguments, cwd=home).returncode == 0, arguments
        if arguments[0] != "show" or len(arguments) > 1:
            json.loads(cli(*arguments, "--json", cwd=home).stdout)


def test_exit_codes(toy_pipeline: Path) -> None:
    home, file = toy_pipeline.parent, toy_pipeline
    assert cli("run", home / "none.yaml").returncode == 2
    assert cli("run", file, "--set", "passes[0].roundz=1").returncode == 2
    assert cli("nonsense").returncode == 2
    assert cli("run", file, "--device", "tpu").returncode == 2
    failed = cli("run", file, "--set", "passes[0].fail=no luck", cwd=home)
    assert failed.returncode == 1
    assert "ValueError: no luck" in failed.stderr
    assert "Traceback" not in failed.stderr
    gated = file.with_name("gated.yaml")
    gated.write_text(file.read_text() + "gates:\n  - {metric: size_bytes, max: 10}\n")
    assert cli("run", gated, cwd=home).returncode == 3
    assert cli("run", file, cwd=home).returncode == 0
    victim = next((home / "artifacts").glob("toy-*")) / "model" / "model.onnx"
    victim.write_bytes(b"x" + victim.read_bytes()[1:])
    damaged = cli("verify", cwd=home)
    assert damaged.returncode == 4
    assert "model/model.onnx: its content has changed" in " ".join(
        (damaged.stdout + damaged.stderr).split()
    )


def test_one_pass_by_hand(toy_pipeline: Path) -> None:
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


def test_gc_removes_what_no_run_needs(toy_pipeline: Path) -> None:
    home = toy_pipeline.parent
    assert cli("run", toy_pipeline, cwd=home).returncode == 0
    assert cli("run", toy_pipeline, "--set", "passes[1].rounds=4", cwd=home).returncode == 0
    doomed = json.loads(cli("gc", "--json", cwd=home).stdout)["paths"]
    assert len(doomed) == 1
    assert cli("run", toy_pipeline, "--set", "passes[1].rounds=4", cwd=home).returncode == 0


def test_init_writes_a_pipeline_that_is_right(tmp_path: Path) -> None:
    assert cli("init", tmp_path).returncode == 0
    assert cli("init", tmp_path).returncode == 2, "never over an existing file"
    assert cli("validate", tmp_path / "pipeline.yaml").returncode == 0
    json.loads((tmp_path / "pipeline.schema.json").read_text())
    assert cli("init", tmp_path / "images", "--starter", "images").returncode == 0
    done = cli("validate", tmp_path / "images" / "pipeline.yaml")
    assert done.returncode == 2, "the pictures are the user's to bring"
    assert "data/train" in done.stderr


def test_the_9b_preset_is_shown_without_being_made() -> None:
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


def test_an_interrupt_inside_a_command_is_told() -> None:
    code = (
        "import sys, typer, cli\n"
        "@cli.app.command('stops')\n"
        "def stops():\n    raise KeyboardInterrupt\n"
        "sys.argv = ['autoglm-compress', 'stops']\n"
        "cli.main()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 130
    assert done.stderr.strip() == "error: interrupted"
