"""The help of every command: one line in the list, and one panel per group."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

from cli import app
from tests.support.cli import cli

GROUPS = {
    "Pipelines": ["run", "plan", "validate", "init", "pass", "schema"],
    "Artifacts": ["show", "verify", "gc", "sign", "archive", "restore", "sbom", "apply"],
    "Analysis": [
        "compare",
        "gate",
        "gain",
        "bisect",
        "report",
        "history",
        "eval",
        "bench",
        "lint",
    ],
    "Models": ["generate", "export-adapter", "convert", "serve"],
    "Environment": ["doctor", "passes"],
}
COMMANDS = [command for commands in GROUPS.values() for command in commands]
FORMER_NAMES = {"export": "archive", "import": "restore"}


def help_at_80_columns() -> str:
    environment = {**os.environ, "TERMINAL_WIDTH": "80", "NO_COLOR": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "cli", "--help"],
        capture_output=True,
        text=True,
        check=True,
        env=environment,
    )
    return done.stdout


def test_each_group_is_a_panel_with_one_line_per_command() -> None:
    panels: dict[str, list[str]] = {}
    panel = ""
    for line in help_at_80_columns().splitlines():
        if title := re.match(r"╭─ (\w+) ─", line):
            panel = title[1]
        elif line.startswith("│") and panel not in {"", "Options"}:
            panels.setdefault(panel, []).append(line[2:].split()[0])
    assert panels == GROUPS


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command: str) -> None:
    done = cli(command, "--help")
    assert done.returncode == 0
    assert re.search(rf"Usage: \S+ {command} ", done.stdout)


@pytest.mark.parametrize(("former", "name"), FORMER_NAMES.items())
def test_a_former_name_still_works_and_is_documented(former: str, name: str) -> None:
    assert f"`{former}` is the former name" in " ".join(cli(name, "--help").stdout.split())
    assert cli(former, "--help").returncode == 0
    assert not re.search(rf"^│ {former} ", help_at_80_columns(), re.MULTILINE)


def test_every_help_text_fits_one_line() -> None:
    import typer

    for name, command in typer.main.get_command(app).commands.items():  # type: ignore[attr-defined]
        for parameter in command.params:
            text = getattr(parameter, "help", None) or ""
            assert len(text) <= 70, (name, parameter.name, text)
            assert text[:1].isupper(), (name, parameter.name, text)
            assert text.endswith("."), (name, parameter.name, text)
