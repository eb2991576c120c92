"""Exit codes and error messages, as a user sees them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.support.cli import cli


def test_a_usage_error_exits_with_2(toy_pipeline: Path) -> None:
    assert cli("run", toy_pipeline.with_name("none.yaml")).returncode == 2
    assert cli("run", toy_pipeline, "--set", "passes[0].roundz=1").returncode == 2
    assert cli("nonsense").returncode == 2
    device = cli("run", toy_pipeline, "--device", "tpu")
    assert device.returncode == 2
    assert "unknown device 'tpu'" in device.stderr


def test_a_failed_pass_exits_with_1_and_no_traceback(toy_pipeline: Path) -> None:
    failed = cli("run", toy_pipeline, "--set", "passes[0].fail=no luck", cwd=toy_pipeline.parent)
    assert failed.returncode == 1
    assert "ValueError: no luck" in failed.stderr
    assert "Traceback" not in failed.stderr


def test_a_failed_gate_exits_with_3(toy_pipeline: Path) -> None:
    gated = toy_pipeline.with_name("gated.yaml")
    gates = "gates:\n  - {metric: size_bytes, max: 10}\n"
    gated.write_text(toy_pipeline.read_text() + gates)
    failed = cli("run", gated, cwd=toy_pipeline.parent)
    assert failed.returncode == 3
    assert "second: size_bytes max 10: " in failed.stderr


def test_a_damaged_artifact_exits_with_4(toy_pipeline: Path) -> None:
    home = toy_pipeline.parent
    assert cli("run", toy_pipeline, cwd=home).returncode == 0
    victim = next((home / "artifacts").glob("toy-*")) / "model" / "model.onnx"
    victim.write_bytes(b"x" + victim.read_bytes()[1:])
    damaged = cli("verify", cwd=home)
    assert damaged.returncode == 4
    output = " ".join((damaged.stdout + damaged.stderr).split())
    assert "model/model.onnx: its content has changed" in output


def test_an_interrupt_inside_a_command_exits_with_130_and_a_message() -> None:
    code = (
        "import sys, cli\n"
        "@cli.app.command('stop')\n"
        "def stop():\n"
        "    raise KeyboardInterrupt\n"
        "sys.argv = ['autoglm-compress', 'stop']\n"
        "cli.main()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 130
    assert done.stderr.strip() == "error: interrupted"
