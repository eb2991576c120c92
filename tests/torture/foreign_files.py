"""Cases that damage one file of an example and run the commands that read it."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import struct
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

from tests.support import mutated_values, mutations
from tests.support.forked import Outcome, run_forked
from tests.torture.examples import Example, warm_up
from tests.torture.forked_worker import fork_measuring_processes
from tests.torture.registry import Case

MOST_BYTES = 1_000_000_000
"""Memory that no input takes, beyond that of the imports."""
_REPLACED, _CHANGED = 0.1, 0.55
"""Shares of the cases that put something else in the file's place, and that leave a valid file with
other values; the others damage structure or bytes."""
_MUTATIONS: dict[str, Callable[[bytes, random.Random], bytes]] = {
    ".json": mutations.mutated_json,
    ".yaml": mutations.mutated_yaml,
    ".safetensors": mutations.mutated_safetensors,
    ".jsonl": mutations.mutated_lines,
}


def damaged(
    build: Callable[[Path], list[Example]], count: int, rng: random.Random
) -> Iterator[Case]:
    """Yield cases, each with a file of an example damaged in another way."""
    warm_up()
    with tempfile.TemporaryDirectory(prefix="torture-examples-") as made:
        examples = build(Path(made))
        for number in range(count):
            seed = rng.random()
            example = random.Random(seed).choice(examples)
            yield f"{example.folder.name} {number}", partial(_attack, example, seed)


def _attack(example: Example, seed: float, folder: Path) -> str | None:
    """Damage a file in a copy of an example; return what is wrong with a command's outcome."""
    rng = random.Random(seed)
    rng.random()
    home = folder / "case"
    shutil.copytree(example.folder, home, symlinks=True)
    file = rng.choice(example.targets(home))
    what = _damage(file, rng)
    for command in example.commands(rng):
        outcome = run_at(home, command)
        allowed = example.allowed_of_run if command[0] == "run" else example.allowed
        if problem := problem_of(outcome, allowed):
            return f"{' '.join(command)}: {problem} ({file.name}: {what})\n    {shown(outcome)}"
    return None


def run_at(home: Path, command: Sequence[str], timeout_s: float = 300) -> Outcome:
    """Run a command in a folder; what it measures, it measures in forked children."""

    def prepare() -> None:
        os.chdir(home)
        fork_measuring_processes()

    return run_forked(*command, prepare=prepare, timeout_s=timeout_s)


def problem_of(outcome: Outcome, allowed: frozenset[int]) -> str | None:
    """Return what is wrong with how a command ended; None if nothing is."""
    if outcome.timed_out:
        return "hangs"
    if outcome.code < 0:
        return f"killed by signal {-outcome.code}"
    if "Traceback" in outcome.printed or "defect of autoglm-compress" in outcome.printed:
        return "traceback"
    if outcome.peak_bytes > MOST_BYTES:
        return f"{outcome.peak_bytes / 1e9:.2f} GB"
    if any(ord(character) < 32 and character not in "\n\t" for character in outcome.printed):
        return "control characters"
    return None if outcome.code in allowed else f"exit code {outcome.code}"


def shown(outcome: Outcome) -> str:
    """Return the last lines that a command has printed."""
    return "\n    ".join([line for line in outcome.printed.splitlines() if line.strip()][-12:])


def _damage(file: Path, rng: random.Random) -> str:
    """Change or mutate a file, or put something else in its place; return what was done."""
    share = rng.random()
    if share < _REPLACED:
        kind = rng.choice(sorted(mutations.REPLACEMENTS))
        mutations.replace_file(file, kind)
        return kind
    mutate = _MUTATIONS.get(file.suffix, mutations.mutated_bytes)
    if share < _REPLACED + _CHANGED:
        mutate = mutated_values.CHANGES.get(file.suffix, mutate)
    content = file.read_bytes()
    with contextlib.suppress(ValueError, struct.error):  # the file's format has no such value
        content = mutate(content, rng)
    file.unlink()
    file.write_bytes(content)
    return mutate.__name__
