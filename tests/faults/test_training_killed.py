"""Trainings that are killed between file operations resume to the same bytes.

``make torture`` kills them at any moment too, and many more of them.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.torture.attacks import killed_trainings


@pytest.mark.parametrize(("name", "seed"), [("distill", 0), ("distill", 1), ("prune", 0)])
def test_a_killed_training_resumes_to_the_same_bytes(name: str, seed: int, tmp_path: Path) -> None:
    killed_trainings.warm_up()
    assert killed_trainings.kill(name, seed, tmp_path, any_moment=False) is None


def test_a_training_in_another_process_gives_the_same_bytes(tmp_path: Path) -> None:
    file = killed_trainings.write("distill", tmp_path)
    command = [sys.executable, "-m", "cli", "run", str(file), "-o", str(tmp_path / "store")]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert killed_trainings.digests(tmp_path) == killed_trainings.uninterrupted("distill")
