"""Real harm: runs killed at random moments, two runs at once, a disk that fills up, a Ctrl-C."""

from __future__ import annotations

import hashlib
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

RUN = [sys.executable, "-m", "cli", "run"]


def tree(store: Path) -> dict[str, str]:
    """Path to sha256 of every model file in a store."""
    files = (path for path in store.glob("*/model/**/*") if path.is_file())
    return {
        str(path.relative_to(store)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
    }


def start(file: Path, store: Path) -> subprocess.Popen[str]:
    command = [*RUN, str(file), "-o", str(store)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen[str]) -> str:
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    return out


@pytest.fixture
def slow_pipeline(toy_pipeline: Path) -> Path:
    text = (
        toy_pipeline.read_text()
        .replace("rounds: 3", "rounds: 8, sleep: 0.05")
        .replace("first}", "first, sleep: 0.05}")
    )
    toy_pipeline.write_text(text)
    return toy_pipeline


@pytest.mark.parametrize("seed", range(20))
def test_killed_at_a_random_moment_it_ends_in_the_same_bytes(
    seed: int, slow_pipeline: Path
) -> None:
    home = slow_pipeline.parent
    finish(start(slow_pipeline, home / "whole"))
    moment = random.Random(seed)
    for _ in range(2):
        process = start(slow_pipeline, home / "store")
        time.sleep(moment.uniform(0.2, 1.8))
        process.kill()
        process.communicate()
    finish(start(slow_pipeline, home / "store"))
    assert tree(home / "store") == tree(home / "whole")
    assert not any((home / "store" / ".staging").iterdir()), "nothing is left over"
    assert not (home / "store" / ".damaged").exists(), "a kill damages nothing"


def test_two_runs_at_once_on_one_store(slow_pipeline: Path) -> None:
    home = slow_pipeline.parent
    processes = [start(slow_pipeline, home / "store") for _ in range(3)]
    for process in processes:
        finish(process)
    finish(start(slow_pipeline, home / "whole"))
    assert tree(home / "store") == tree(home / "whole")


def test_ctrl_c_ends_with_130_and_is_gone_on_from(slow_pipeline: Path) -> None:
    home = slow_pipeline.parent
    for name in (signal.SIGINT, signal.SIGTERM):
        process = start(slow_pipeline, home / name.name)
        deadline = time.monotonic() + 60
        while (
            not list((home / name.name).glob(".staging/*/work/state"))
            and time.monotonic() < deadline
        ):
            time.sleep(0.02)
        process.send_signal(name)
        _, err = process.communicate(timeout=60)
        assert process.returncode == 130, err
        assert "Traceback" not in err
        finish(start(slow_pipeline, home / name.name))


@pytest.fixture
def small_disk(tmp_path: Path):
    """A file system of 256 KiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(disk)],
        check=False,
        capture_output=True,
    )
    if mounted.returncode:
        pytest.skip("mounting needs root")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


def test_a_disk_that_fills_up(toy_pipeline: Path, small_disk: Path) -> None:
    ballast = small_disk / "ballast"
    ballast.write_bytes(b"\0" * (100 << 10))
    done = subprocess.run(
        [*RUN, str(toy_pipeline), "-o", str(small_disk / "s")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "disk is full" in done.stderr
    assert "Traceback" not in done.stderr
    for path in (small_disk / "s").iterdir():
        if not path.name.startswith("."):
            assert (path / "manifest.json").is_file(), "what has its final name is whole"
    ballast.unlink()
    for left in (small_disk / "s" / ".staging").iterdir():
        assert left.exists()
    subprocess.run(["mount", "-o", "remount,size=4m", str(small_disk)], check=True)
    again = subprocess.run(
        [*RUN, str(toy_pipeline), "-o", str(small_disk / "s")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert again.returncode == 0, again.stderr


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_no_permission(toy_pipeline: Path, tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    done = subprocess.run(
        [*RUN, str(toy_pipeline), "-o", str(tmp_path / "s")],
        capture_output=True,
        text=True,
        check=False,
    )
    tmp_path.chmod(0o700)
    assert done.returncode == 1
    assert "permission" in done.stderr


def test_a_flipped_byte_is_never_delivered(toy_pipeline: Path) -> None:
    home = toy_pipeline.parent
    finish(start(toy_pipeline, home / "store"))
    whole = tree(home / "store")
    moment = random.Random(0)
    for path in sorted((home / "store").glob("*/model/*")):
        content = bytearray(path.read_bytes())
        content[moment.randrange(len(content))] ^= 1 << moment.randrange(8)
        path.write_bytes(content)
        process = start(toy_pipeline, home / "store")
        _, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
        assert "damaged" in err
        assert tree(home / "store") == whole


def test_a_read_only_place_names_the_remedy(toy_pipeline: Path) -> None:
    done = subprocess.run(
        [*RUN, str(toy_pipeline), "-o", "/proc/nowhere"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "--output-dir" in done.stderr or "cannot write" in done.stderr
