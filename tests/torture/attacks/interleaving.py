"""Run one command to its end between two file operations of another one."""

from __future__ import annotations

import fcntl
import os
import random
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from tests.support.forked import Outcome
from tests.torture.attacks.kill_points import whole
from tests.torture.operations import Operations, watch
from tests.torture.registry import Attack, Case
from tests.torture.stores import (
    COMMANDS,
    Command,
    copy_template,
    leftovers,
    problem_of,
    run_in,
)


@dataclass(frozen=True, slots=True)
class Pair:
    """A command, and another one that runs between its operations."""

    first: Command
    words: tuple[str, ...]
    """The other command."""
    codes: frozenset[int] = frozenset({0})
    """Exit codes that the other may have."""
    first_codes: frozenset[int] = frozenset({0})


_BY_NAME = {command.name: command for command in COMMANDS}
_NOTHING_YET = frozenset({0, 2})
_GATE = ("gate", "artifacts", "--against", "artifacts")
PAIRS = (
    Pair(_BY_NAME["run"], ("gc",)),
    Pair(_BY_NAME["run"], ("run", "pipeline.yaml")),
    Pair(_BY_NAME["run"], ("verify", "artifacts"), _NOTHING_YET),
    Pair(_BY_NAME["run"], ("report",), _NOTHING_YET),
    Pair(_BY_NAME["measure again"], _BY_NAME["measure again"].words),
    Pair(_BY_NAME["measure again"], ("run", "pipeline.yaml")),
    Pair(_BY_NAME["measure again"], ("gc",)),
    Pair(_BY_NAME["measure again"], ("verify", "artifacts")),
    Pair(_BY_NAME["measure again"], _GATE),
    Pair(_BY_NAME["measure again"], ("history",)),
    Pair(_BY_NAME["measure again"], ("show", "FIRST")),
    Pair(_BY_NAME["measure again"], ("archive", "FIRST", "new.tar.zst")),
    Pair(_BY_NAME["measure again"], ("sign", "FIRST", "--key", "key.pem")),
    # A run whose artifacts were measured again has no report of its own any more.
    Pair(_BY_NAME["measure again"], ("report",), frozenset({0, 2})),
    Pair(_BY_NAME["run --force"], ("verify", "artifacts")),
    Pair(_BY_NAME["run --force"], _GATE),
    Pair(_BY_NAME["run --force"], ("gc",)),
    Pair(_BY_NAME["run --force"], ("archive", "FIRST", "new.tar.zst")),
    Pair(_BY_NAME["gc"], ("run", "pipeline.yaml")),
    Pair(_BY_NAME["gc"], ("verify", "artifacts")),
    Pair(_BY_NAME["gc"], ("gc",)),
    Pair(_BY_NAME["restore"], ("gc",)),
    Pair(_BY_NAME["restore"], _BY_NAME["restore"].words),
    Pair(
        _BY_NAME["archive"],
        ("archive", "FIRST", "new.tar.zst"),
        _NOTHING_YET,
        _NOTHING_YET,
    ),
    Pair(_BY_NAME["archive"], ("gc",)),
    Pair(_BY_NAME["report"], ("report",)),
    Pair(_BY_NAME["report"], _GATE),
    Pair(_BY_NAME["sign"], ("gc",)),
    Pair(_BY_NAME["sign"], _BY_NAME["measure again"].words),
)


def interleave(pair: Pair, number: int, home: Path) -> str | None:
    """Run the other command before an operation of the first one; return what is wrong."""
    copy_template(pair.first.template, home)
    reached, go = os.pipe(), os.pipe()
    outcomes: list[Outcome] = []

    def prepare() -> None:
        def pause() -> None:
            os.write(reached[1], b"1")
            os.read(go[0], 1)

        watch(home, Operations(number, pause))

    def run_first() -> None:
        outcomes.append(run_in(home, pair.first.words, prepare))
        os.write(reached[1], b"0")  # if it has ended before the operation

    first = threading.Thread(target=run_first)
    first.start()
    os.read(reached[0], 1)
    other = run_in(home, pair.words, partial(_release_before_waiting, go[1]))
    os.write(go[1], b"1")
    first.join()
    for descriptor in (*reached, *go):
        os.close(descriptor)
    return _problem(pair, outcomes[0], other, home)


def _release_before_waiting(go: int) -> None:
    """Let the first command go on when this one is about to wait for a lock."""

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "fcntl.flock" and not arguments[1] & fcntl.LOCK_NB and _is_lock(arguments[0]):
            os.write(go, b"1")

    sys.addaudithook(hook)


def _is_lock(descriptor: int) -> bool:
    """Return True for the lock of an artifact or a record, not for a file of the command's own."""
    return not Path(f"/proc/self/fd/{descriptor}").readlink().name.startswith(".")


def _problem(pair: Pair, first: Outcome, other: Outcome, home: Path) -> str | None:
    for command, outcome, codes in (
        (pair.first.name, first, pair.first_codes),
        (" ".join(pair.words), other, pair.codes),
    ):
        if outcome.code not in codes or "Traceback" in outcome.printed:
            return f"`{command}` ends with {outcome.code}: {outcome.printed[-400:]}"
    if problem := problem_of(home):
        return problem
    if left := leftovers(home):
        return f"left over: {', '.join(left)}"
    archive = home / "new.tar.zst"
    if archive.exists():
        outcome = run_in(home, ("restore", "new.tar.zst", "-o", "restored"))
        if outcome.code:
            return f"the archive cannot be restored: {outcome.printed[-300:]}"
    return None


def _cases(source: random.Random) -> Iterator[Case]:
    points = [(pair, number) for pair in PAIRS for number in range(whole(pair.first)[0])]
    source.shuffle(points)
    for pair, number in points:
        name = f"{pair.first.name} | {' '.join(pair.words)}, operation {number}"
        yield name, partial(interleave, pair, number)


ATTACK = Attack(
    "interleaving",
    "a command runs to its end between two file operations of another one; both end well, and the "
    "store verifies",
    _cases,
)
