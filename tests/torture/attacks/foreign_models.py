"""Mutated models of every format: one file of each is damaged or replaced."""

from __future__ import annotations

from functools import partial

from tests.torture.foreign_examples import models
from tests.torture.foreign_files import damaged
from tests.torture.registry import Attack

ATTACK = Attack(
    "foreign-models",
    "Mutated models of every format: exit 0 or 2, no traceback, no hang, at most 1 GB",
    partial(damaged, models, 500),
)
