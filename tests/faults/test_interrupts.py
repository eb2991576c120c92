"""Ctrl-C and SIGTERM at any moment of any command: exit code 130, one line, and nothing torn."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from compressor import interrupts
from tests.support.cli import cli
from tests.support.forked import Outcome, run_forked

MOMENTS = 2
"""Moments tried of each command and signal."""


def signal_at(moment: int, number: int) -> Callable[[], None]:
    """Return a function that has this process signal itself at one of its operations.

    Operations are the events that CPython reports to audit hooks: imports, opened files, renames.
    """
    seen = 0

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal seen
        seen += 1
        if seen == moment:
            os.kill(os.getpid(), number)

    return lambda: sys.addaudithook(hook)


def count_operations(arguments: list[object], folder: Path) -> int:
    """Return the number of operations of a command that is not disturbed."""
    counter = folder / "operations"

    def prepare() -> None:
        seen = 0

        def hook(event: str, arguments: tuple[object, ...]) -> None:
            nonlocal seen
            seen += 1

        sys.addaudithook(hook)
        leave = os._exit
        os._exit = lambda code: (counter.write_text(str(seen)), leave(code))  # type: ignore[assignment]

    outcome = run_forked(*arguments, prepare=prepare)
    assert outcome.code == 0, outcome.printed
    return int(counter.read_text())


def assert_interrupted(outcome: Outcome) -> None:
    """Check the exit code and the message of an interrupted command."""
    assert outcome.code == 130, outcome.printed
    assert "Traceback" not in outcome.printed
    assert "Exception ignored" not in outcome.printed
    errors = [line for line in outcome.printed.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, outcome.printed
    assert errors[0].endswith("interrupted")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a pipeline of toy steps, and a store in which it has run."""
    from tests.support.tiny_files import tiny_onnx

    home = tmp_path_factory.mktemp("interrupts")
    (home / "model").mkdir()
    (home / "model" / "model.onnx").write_bytes(tiny_onnx())
    (home / "pipeline.yaml").write_text(
        "version: 1\nname: toy\nmodel: {path: model}\n"
        "passes: [{type: toy, name: first}, {type: toy, name: second, rounds: 3}]\n"
    )
    outcome = run_forked("run", home / "pipeline.yaml", "-o", home / "whole")
    assert outcome.code == 0, outcome.printed
    return home


COMMANDS = {
    "run": ["run", "{home}/pipeline.yaml", "-o", "{new}"],
    "run-cached": ["run", "{home}/pipeline.yaml", "-o", "{home}/whole"],
    "plan": ["plan", "{home}/pipeline.yaml", "-o", "{home}/whole"],
    "validate": ["validate", "{home}/pipeline.yaml"],
    "show": ["show", "{home}/whole"],
    "verify": ["verify", "{home}/whole"],
    "archive": ["archive", "{artifact}", "{new}.tar.zst"],
    "report": ["report", "{home}/whole"],
    "history": ["history", "-o", "{home}/whole"],
    "gc": ["gc", "-o", "{home}/whole"],
    "init": ["init", "{new}"],
}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_signal_at_any_moment_ends_a_command_with_130(
    command: str, home: Path, tmp_path: Path
) -> None:
    artifact = next((home / "whole").glob("toy-*"))

    def words(number: int) -> list[object]:
        new = tmp_path / str(number)
        return [word.format(home=home, new=new, artifact=artifact) for word in COMMANDS[command]]

    operations = count_operations(words(0), tmp_path)
    moments = random.Random(command).sample(range(1, operations), k=min(MOMENTS, operations - 1))
    for moment in moments:
        for kind in (signal.SIGINT, signal.SIGTERM):
            arguments = words(moment * 100 + kind)
            assert_interrupted(run_forked(*arguments, prepare=signal_at(moment, kind)))
    assert run_forked("verify", home / "whole").code == 0
    if command == "run":
        whole = {path.name for path in (home / "whole").glob("*-*")}
        for store in tmp_path.iterdir():
            if store.is_dir():
                assert run_forked("run", home / "pipeline.yaml", "-o", store).code == 0
                assert {path.name for path in store.glob("*-*")} == whole


def test_an_interrupt_that_a_destructor_drops_is_raised_again() -> None:
    code = (
        "import os, signal, time, cli\n"
        "class Dropping:\n"
        "    def __del__(self):\n"
        "        os.kill(os.getpid(), signal.SIGINT)\n"
        "        time.sleep(0.01)\n"
        "@cli.app.command('stop')\n"
        "def stop():\n"
        "    Dropping()\n"
        "    time.sleep(60)\n"
        "import sys; sys.argv = ['autoglm-compress', 'stop']\n"
        "cli.main()\n"
    )
    start = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.strip()) == (130, "error: interrupted")
    assert time.monotonic() - start < 30


def test_an_interrupt_that_a_library_turns_into_an_error_is_still_one(
    toy_pipeline: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import toy

    def lose(*_: object, **__: object) -> None:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(1)
        except BaseException as error:
            raise RuntimeError("a library has failed") from error

    monkeypatch.setattr(toy.Toy, "run", lose)
    outcome = run_forked("run", toy_pipeline, "-o", toy_pipeline.parent / "store")
    assert_interrupted(outcome)
    assert "first was interrupted" in outcome.printed


def test_a_second_signal_ends_the_process_while_a_library_computes(tmp_path: Path) -> None:
    code = (
        "import hashlib, sys, cli\n"
        "@cli.app.command('compute')\n"
        "def compute():\n"
        "    print('computing', flush=True)\n"
        "    hashlib.pbkdf2_hmac('sha256', b'', b'', 10**9)\n"  # minutes in C, without the GIL
        "sys.argv = ['autoglm-compress', 'compute']\n"
        "cli.main()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout
        assert process.stdout.readline() == "computing\n"
        process.send_signal(signal.SIGTERM)
        time.sleep(2 * interrupts._ONE_SIGNAL_SECONDS)
        process.send_signal(signal.SIGTERM)
        _, stderr = process.communicate(timeout=30)
    assert (process.returncode, stderr) == (130, "error: interrupted\n")


def test_an_exception_that_nobody_foresaw_is_one_line_and_a_file(tmp_path: Path) -> None:
    code = (
        "import sys, cli\n"
        "@cli.app.command('fail')\n"
        "def fail():\n"
        "    raise KeyError('surprise')\n"
        "sys.argv = ['autoglm-compress', 'fail']\n"
        "cli.main()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "TMPDIR": str(tmp_path)},
    )
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    (report,) = tmp_path.iterdir()
    assert f"please report it with the file {report}" in done.stderr
    assert "KeyError: 'surprise'" in report.read_text()
    assert cli("--help").returncode == 0
