"""Mutated archives, manifests, reports and records: one file of each is damaged or replaced."""

from __future__ import annotations

from functools import partial

from tests.torture.foreign_examples import archives
from tests.torture.foreign_files import damaged
from tests.torture.registry import Attack

ATTACK = Attack(
    "foreign-archives",
    "Mutated archives, manifests, reports and records: exit 0, 2 or 4, no traceback",
    partial(damaged, archives, 500),
)
