"""Attacks of the campaign: one module in ``attacks`` each, which defines ``ATTACK``."""

from __future__ import annotations

import importlib
import pkgutil
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.torture import attacks

Case = tuple[str, Callable[[Path], str | None]]
"""Name of a case, and a function that runs it in an empty folder and returns what went wrong."""


@dataclass(frozen=True, slots=True)
class Attack:
    """A kind of attack."""

    name: str
    what: str
    """One line: what is done, and what must hold afterwards."""
    cases: Callable[[random.Random], Iterator[Case]]
    """Yields the cases, in an order that the seed determines; equal seeds give equal cases."""


def all_attacks() -> dict[str, Attack]:
    """Return the attacks of every module in ``attacks``, by name."""
    names = sorted(module.name for module in pkgutil.iter_modules(attacks.__path__))
    found = [importlib.import_module(f"{attacks.__name__}.{name}").ATTACK for name in names]
    return {attack.name: attack for attack in found}
