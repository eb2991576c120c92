"""Cases that damage one file of an example and run the commands that read it."""

from __future__ import annotations

import contextlib
import random
import shutil
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from tests.support import mutations
from tests.torture.children import run_command
from tests.torture.foreign_examples import Example, warm_up
from tests.torture.registry import Case

MOST_BYTES = 1_000_000_000
"""Memory that no input takes, beyond that of the imports."""
_REPLACED = 0.12
"""Share of the cases that put something else in the file's place."""
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
        outcome = run_command(command, home)
        if problem := outcome.problem(example.allowed, MOST_BYTES):
            lines = [line for line in outcome.output.splitlines() if line.strip()][-12:]
            shown = "\n    ".join(lines)
            return f"{' '.join(command)}: {problem} ({file.name}: {what})\n    {shown}"
    return None


def _damage(file: Path, rng: random.Random) -> str:
    """Mutate a file, or put something else in its place; return what was done."""
    if rng.random() < _REPLACED:
        kind = rng.choice(sorted(mutations.REPLACEMENTS))
        mutations.replace_file(file, kind)
        return kind
    mutate = _MUTATIONS.get(file.suffix, mutations.mutated_bytes)
    content = file.read_bytes()
    with contextlib.suppress(ValueError):
        content = mutate(content, rng)
    file.unlink()
    file.write_bytes(content)
    return mutate.__name__
