"""A seeded subset of the attacks on stores in ``tests/torture``: each kind, every command."""

from __future__ import annotations

import random
from itertools import islice
from pathlib import Path

import pytest

from tests.torture.attacks import byte_flips, interleaving, kill_points, power_loss
from tests.torture.registry import Attack

SEED = 23


@pytest.mark.parametrize(
    ("attack", "count"),
    [
        (kill_points.ATTACK, 12),
        (power_loss.ATTACK, 6),
        (interleaving.ATTACK, 12),
        (byte_flips.ATTACK, 40),
    ],
    ids=lambda value: value.name if isinstance(value, Attack) else "",
)
def test_a_store_survives(attack: Attack, count: int, tmp_path: Path) -> None:
    failures = []
    cases = attack.cases(random.Random(SEED))
    for number, (name, run) in enumerate(islice(cases, count)):
        home = tmp_path / str(number)
        home.mkdir()
        if problem := run(home):
            failures.append(f"{name}: {problem}")
    assert not failures, "\n".join(failures)
