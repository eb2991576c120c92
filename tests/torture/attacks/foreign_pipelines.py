"""Mutated pipelines: one file of each is damaged or replaced."""

from __future__ import annotations

from functools import partial

from tests.torture.foreign_examples import pipelines
from tests.torture.foreign_files import damaged
from tests.torture.registry import Attack

ATTACK = Attack(
    "foreign-pipelines",
    "Mutated pipelines: exit 0 or 2, and no traceback",
    partial(damaged, pipelines, 1000),
)
