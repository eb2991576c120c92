"""A real training, killed at random moments, ends in the same bytes as one that was left alone."""

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
  - {type: train, name: teacher, validation: null, training: {steps: 150, batch_size: 4, checkpoint_every: 3}}
  - type: distill
    name: student
    student: {slim: {vision_width: 4}}
    validation: train
    training: {steps: 150, batch_size: 4, checkpoint_every: 3, evaluate_every: 10, average: 0.9}
    features: {}
    feedback: {start: 0.2}
"""

PRUNED = """\
version: 1
name: rounds
threads: 1
model: {family: image-classifier, preset: small, config: {num_classes: 2, image_size: 16}, measure: false}
data:
  train: {source: images, path: pictures, image_size: 16}
passes:
  - type: prune
    target: {macs: 0.5}
    calibration: train
    recovery: {validation: train, training: {steps: 120, batch_size: 4, checkpoint_every: 3, average: 0.9}}
    schedule: {kind: gradual, rounds: 4}
"""


def run(file: Path, store: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "cli", "run", str(file), "-o", str(store)]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def finish(file: Path, store: Path) -> dict[str, str]:
    process = run(file, store)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    models = sorted(store.glob("*/model/*"))
    return {
        str(path.relative_to(store)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in models
    }


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("pictures")
    draw_pictures(home / "pictures", 12)
    (home / "pipeline.yaml").write_text(PIPELINE)
    (home / "rounds.yaml").write_text(PRUNED)
    return home


@pytest.fixture(scope="module")
def whole(pictures: Path) -> dict[str, str]:
    return finish(pictures / "pipeline.yaml", pictures / "whole")


@pytest.mark.parametrize("seed", range(4))
def test_the_same_bytes_after_kills(
    seed: int, pictures: Path, whole: dict[str, str], tmp_path: Path
) -> None:
    moment = random.Random(seed)
    for _ in range(2):
        process = run(pictures / "pipeline.yaml", tmp_path / "store")
        time.sleep(moment.uniform(2.0, 6.0))
        process.kill()
        process.communicate()
    assert finish(pictures / "pipeline.yaml", tmp_path / "store") == whole


def test_two_empty_stores_get_the_same_bytes(
    pictures: Path, whole: dict[str, str], tmp_path: Path
) -> None:
    assert finish(pictures / "pipeline.yaml", tmp_path / "store") == whole


def test_cuts_in_rounds_end_in_the_same_bytes_after_kills(pictures: Path, tmp_path: Path) -> None:
    whole = finish(pictures / "rounds.yaml", tmp_path / "whole")
    moment = random.Random(0)
    for _ in range(3):
        process = run(pictures / "rounds.yaml", tmp_path / "store")
        time.sleep(moment.uniform(2.5, 6.0))
        process.kill()
        process.communicate()
    assert finish(pictures / "rounds.yaml", tmp_path / "store") == whole
