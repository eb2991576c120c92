"""Trainings that are killed at random moments, and resume to the same bytes."""

from __future__ import annotations

import hashlib
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support.tiny_files import draw_pictures

PIPELINE = """\
version: 1
name: pictures
threads: 1
model: {family: image-classifier, preset: tiny, config: {num_classes: 2}, measure: false}
data:
  train: {source: images, path: pictures, image_size: 16}
passes:
  - type: train
    name: teacher
    validation: null
    training: {steps: 150, batch_size: 4, checkpoint_every: 3}
  - type: distill
    name: student
    student: {slim: {vision_width: 4}}
    validation: train
    training:
      steps: 150
      batch_size: 4
      checkpoint_every: 3
      evaluate_every: 10
      ema_decay: 0.9
    features: {}
    feedback: {start: 0.2}
"""

PRUNING = """\
version: 1
name: rounds
threads: 1
model:
  family: image-classifier
  preset: small
  config: {num_classes: 2, image_size: 16}
  measure: false
data:
  train: {source: images, path: pictures, image_size: 16}
passes:
  - type: prune
    target: {macs: 0.5}
    calibration: train
    recovery:
      validation: train
      training: {steps: 120, batch_size: 4, checkpoint_every: 3, ema_decay: 0.9}
    schedule: {kind: gradual, rounds: 4}
"""


def start(file: Path, store: Path) -> subprocess.Popen[str]:
    """Start a run of a pipeline."""
    command = [sys.executable, "-m", "cli", "run", str(file), "-o", str(store)]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def finish(file: Path, store: Path) -> dict[str, str]:
    """Run a pipeline to its end, and return the sha256 of every model file by its path."""
    process = start(file, store)
    _, stderr = process.communicate(timeout=300)
    assert process.returncode == 0, stderr
    return {
        str(path.relative_to(store)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(store.glob("*/model/*"))
    }


def kill_after(file: Path, store: Path, seconds: float) -> None:
    """Start a run of a pipeline and kill it."""
    process = start(file, store)
    time.sleep(seconds)
    process.kill()
    process.communicate()


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("pictures")
    draw_pictures(home / "pictures", 12)
    (home / "pipeline.yaml").write_text(PIPELINE)
    (home / "pruning.yaml").write_text(PRUNING)
    return home


@pytest.fixture(scope="module")
def uninterrupted(home: Path) -> dict[str, str]:
    return finish(home / "pipeline.yaml", home / "uninterrupted")


@pytest.mark.parametrize("seed", range(4))
def test_a_killed_run_resumes_to_the_same_bytes(
    seed: int, home: Path, uninterrupted: dict[str, str], tmp_path: Path
) -> None:
    moments = random.Random(seed)
    for _ in range(2):
        kill_after(home / "pipeline.yaml", tmp_path / "store", moments.uniform(2.0, 6.0))
    assert finish(home / "pipeline.yaml", tmp_path / "store") == uninterrupted


def test_two_runs_on_empty_stores_give_the_same_bytes(
    home: Path, uninterrupted: dict[str, str], tmp_path: Path
) -> None:
    assert finish(home / "pipeline.yaml", tmp_path / "store") == uninterrupted


def test_a_killed_pruning_in_rounds_resumes_to_the_same_bytes(home: Path, tmp_path: Path) -> None:
    uninterrupted = finish(home / "pruning.yaml", tmp_path / "uninterrupted")
    moments = random.Random(0)
    for _ in range(3):
        kill_after(home / "pruning.yaml", tmp_path / "store", moments.uniform(2.5, 6.0))
    assert finish(home / "pruning.yaml", tmp_path / "store") == uninterrupted
