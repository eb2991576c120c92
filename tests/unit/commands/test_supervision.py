"""The parent of the program: crashes are one error with its exit code, signals reach the child."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

CRASH = """
import ctypes, os, resource, signal, sys, time, cli
from compressor.errors import ModelError
from compressor.foreign_files.libraries import library_errors
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
@cli.app.command("crash")
def crash(how: str, file: str = "") -> None:
    if how == "sleep":
        print(os.getpid(), flush=True)
        time.sleep(60)
    elif how == "after a file":
        with library_errors(file, ModelError, "copy it again"):
            pass
        ctypes.string_at(0)
    elif file:
        with library_errors(file, ModelError, "copy it again"):
            with library_errors("its tokenizer", ModelError):
                pass
            ctypes.string_at(0)
    else:
        os.kill(os.getpid(), getattr(signal, how))
sys.argv = ["autoglm-compress", "crash", *sys.argv[1:]]
cli.main()
"""


def crash(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", CRASH, *words],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "TMPDIR": str(folder)},
    )


def test_a_library_that_crashes_on_a_file_is_an_error_of_the_file(tmp_path: Path) -> None:
    done = crash(tmp_path, "null", "--file", "m/model.onnx")
    assert done.returncode == 2
    message = "m/model.onnx: the process that read it was killed by signal 11 (Segmentation fault)"
    assert " ".join(done.stderr.split()) == f"error: {message} → copy it again"


@pytest.mark.parametrize("number", ["SIGSEGV", "SIGABRT"])
def test_any_other_crash_is_one_line_and_a_file_with_the_stack(tmp_path: Path, number: str) -> None:
    done = crash(tmp_path, number)
    (stack,) = tmp_path.glob("*.traceback.txt")
    assert done.returncode == 1
    assert f"please report it with the file {stack}" in " ".join(done.stderr.split())
    assert "in crash" in stack.read_text()


def test_a_file_that_was_read_before_the_crash_is_not_named(tmp_path: Path) -> None:
    done = crash(tmp_path, "after a file", "--file", "m/model.onnx")
    assert done.returncode == 1
    assert "m/model.onnx" not in done.stderr


def test_a_killed_process_is_told_that_memory_may_have_run_out(tmp_path: Path) -> None:
    done = crash(tmp_path, "SIGKILL")
    assert done.returncode == 1
    assert done.stderr.startswith("error: the process was killed by signal 9 (Killed)")
    assert "memory" in done.stderr


def test_a_signal_that_means_no_crash_ends_the_parent_as_well(tmp_path: Path) -> None:
    previous = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # nohup ignores it
    try:
        done = crash(tmp_path, "SIGHUP")
    finally:
        signal.signal(signal.SIGHUP, previous)
    assert (done.returncode, done.stderr) == (-signal.SIGHUP, "")


def test_the_program_ends_with_its_parent() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", CRASH, "sleep"], stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout
        child = int(parent.stdout.readline())
        assert child != parent.pid
        parent.kill()
    deadline = time.monotonic() + 20
    while Path(f"/proc/{child}").exists() and time.monotonic() < deadline:
        state = Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()[0]
        if state == "Z":
            break
        time.sleep(0.01)
    else:
        assert not Path(f"/proc/{child}").exists()
