"""Faults: kills at random moments, concurrent runs, a full disk, Ctrl-C, flipped bytes."""

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

from tests.support.cli import cli
from tests.support.forked import run_forked
from tests.support.tiny_files import tiny_onnx
from tests.torture.stores import warm_up

RUN = [sys.executable, "-m", "cli", "run"]


def model_hashes(store: Path) -> dict[str, str]:
    """Return the SHA-256 of every model file in a store, by its path."""
    files = (path for path in store.glob("*/model/**/*") if path.is_file())
    return {
        str(path.relative_to(store)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
    }


def start(file: Path, store: Path) -> subprocess.Popen[str]:
    """Start a run in a process of its own."""
    command = [*RUN, str(file), "-o", str(store)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen[str]) -> str:
    """Wait for a run, which must succeed, and return its output."""
    stdout, stderr = process.communicate(timeout=300)
    assert process.returncode == 0, stderr
    return stdout


def write_slow_pipeline(home: Path) -> Path:
    """Write a pipeline of two toy steps, with rounds that take 50 ms each."""
    (home / "model").mkdir()
    (home / "model" / "model.onnx").write_bytes(tiny_onnx())
    file = home / "pipeline.yaml"
    file.write_text(
        "version: 1\nname: toy\nmodel: {path: model}\npasses:\n"
        "  - {type: toy, name: first, sleep: 0.05}\n"
        "  - {type: toy, name: second, rounds: 8, sleep: 0.05}\n"
    )
    return file


@pytest.fixture
def slow_pipeline(tmp_path: Path) -> Path:
    """Return a pipeline whose kills fall into its rounds."""
    return write_slow_pipeline(tmp_path)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Return the hashes of the models of a run that nothing disturbs."""
    home = tmp_path_factory.mktemp("whole")
    finish(start(write_slow_pipeline(home), home / "store"))
    return model_hashes(home / "store")


@pytest.mark.parametrize("seed", range(3))
def test_a_run_killed_at_random_moments_resumes_to_the_same_bytes(
    seed: int, slow_pipeline: Path, whole: dict[str, str]
) -> None:
    store = slow_pipeline.parent / "store"
    random_source = random.Random(seed)
    for _ in range(2):
        process = start(slow_pipeline, store)
        time.sleep(random_source.uniform(0.2, 1.8))
        process.kill()
        process.communicate()
    finish(start(slow_pipeline, store))
    assert model_hashes(store) == whole
    assert not any((store / ".staging").iterdir()), "staging is empty"
    assert not (store / ".damaged").exists(), "a kill damages nothing"


@pytest.mark.parametrize("seed", range(10))
def test_a_killed_child_resumes_to_the_same_bytes(
    seed: int, slow_pipeline: Path, whole: dict[str, str]
) -> None:
    warm_up()
    store = slow_pipeline.parent / "store"
    random_source = random.Random(seed)
    words = ("run", slow_pipeline, "-o", store)
    for _ in range(3):
        run_forked(*words, timeout_s=random_source.uniform(0.05, 0.6))
    outcome = run_forked(*words)
    assert outcome.code == 0, outcome.printed
    assert model_hashes(store) == whole
    assert not any((store / ".staging").iterdir()), "staging is empty"
    assert not (store / ".damaged").exists(), "a kill damages nothing"


def test_concurrent_runs_on_one_store_give_the_same_bytes(
    slow_pipeline: Path, whole: dict[str, str]
) -> None:
    home = slow_pipeline.parent
    processes = [start(slow_pipeline, home / "store") for _ in range(3)]
    for process in processes:
        finish(process)
    assert model_hashes(home / "store") == whole


def test_an_interrupted_run_exits_with_130_and_resumes(slow_pipeline: Path) -> None:
    home = slow_pipeline.parent
    for signal_ in (signal.SIGINT, signal.SIGTERM):
        store = home / signal_.name
        process = start(slow_pipeline, store)
        deadline = time.monotonic() + 60
        while not list(store.glob(".staging/*/work/state")) and time.monotonic() < deadline:
            time.sleep(0.02)
        process.send_signal(signal_)
        _, stderr = process.communicate(timeout=60)
        assert process.returncode == 130, stderr
        assert "Traceback" not in stderr
        finish(start(slow_pipeline, store))


@pytest.fixture
def small_disk(tmp_path: Path):
    """Mount a file system of 256 KiB."""
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


def test_a_run_on_a_full_disk_fails_cleanly_and_resumes(
    toy_pipeline: Path, small_disk: Path
) -> None:
    ballast = small_disk / "ballast"
    ballast.write_bytes(b"\0" * (100 << 10))
    done = cli("run", toy_pipeline, "-o", small_disk / "s")
    assert done.returncode == 1
    assert "disk is full" in done.stderr
    assert "Traceback" not in done.stderr
    for path in (small_disk / "s").iterdir():
        if not path.name.startswith("."):
            assert (path / "manifest.json").is_file(), "a published artifact is complete"
    ballast.unlink()
    subprocess.run(["mount", "-o", "remount,size=4m", str(small_disk)], check=True)
    again = cli("run", toy_pipeline, "-o", small_disk / "s")
    assert again.returncode == 0, again.stderr


@pytest.mark.skipif(os.geteuid() == 0, reason="root can write anywhere")
def test_a_store_without_write_permission_is_refused(toy_pipeline: Path, tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    done = cli("run", toy_pipeline, "-o", tmp_path / "s")
    tmp_path.chmod(0o700)
    assert done.returncode == 1
    assert "permission" in done.stderr


def test_an_artifact_with_a_flipped_bit_is_rebuilt(toy_pipeline: Path) -> None:
    warm_up()
    store = toy_pipeline.parent / "store"
    words = ("run", toy_pipeline, "-o", store)
    assert run_forked(*words).code == 0
    intact = model_hashes(store)
    random_source = random.Random(0)
    for path in sorted(store.glob("*/model/*")):
        content = bytearray(path.read_bytes())
        position = random_source.randrange(len(content))
        content[position] ^= 1 << random_source.randrange(8)
        path.write_bytes(content)
        outcome = run_forked(*words)
        assert outcome.code == 0, outcome.printed
        assert "damaged" in outcome.printed
        assert model_hashes(store) == intact


def test_a_read_only_place_is_refused_with_a_remedy(toy_pipeline: Path) -> None:
    done = cli("run", toy_pipeline, "-o", "/proc/nowhere")
    assert done.returncode == 1
    assert "--output-dir" in done.stderr or "cannot write" in done.stderr
