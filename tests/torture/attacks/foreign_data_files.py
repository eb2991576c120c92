"""Mutated data of every source: one file of each is damaged or replaced."""

from __future__ import annotations

from functools import partial

from tests.torture.foreign_examples import data_files
from tests.torture.foreign_files import damaged
from tests.torture.registry import Attack

ATTACK = Attack(
    "foreign-data-files",
    "Mutated data of every source: exit 0 or 2, no traceback, no hang, at most 1 GB",
    partial(damaged, data_files, 200),
)
