"""Mutated pipelines of the examples, over tiny real models that their steps run on."""

from __future__ import annotations

import random
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from tests.torture.examples import Example
from tests.torture.foreign_files import damaged
from tests.torture.registry import Attack

_RUNS = 0.04
"""Share of the cases that run the pipeline, not only plan it."""
_SMALL = {
    "num_samples": 8,
    "batch_size": 4,
    "sequence_length": 32,
    "steps": 2,
    "warmup": 1,
    "repeats": 2,
    "checkpoint_every": 1,
    "evaluate_every": 0,
    "group_size": 16,
    "commands_per_screen": 1,
    "count": 16,
}
"""Values that make the examples' steps short."""


def pipelines(root: Path) -> list[Example]:
    """Return the pipelines of the examples beside tiny models and data."""
    from tests.support.example_files import write_stand_in

    examples = []
    repository = Path(__file__).parents[3]
    for file in sorted((repository / "examples").glob("*/*.yaml")):
        folder = root / f"{file.parent.name}-{file.stem}"
        folder.mkdir(parents=True)
        for source in file.parent.glob("*.py"):
            shutil.copy(source, folder)
        if "fetched/" in file.read_text():
            write_stand_in(file.parent.name, folder / "fetched", 8)
        tree = _small(yaml.safe_load(file.read_text()))
        (folder / "pipeline.yaml").write_text(yaml.safe_dump(tree, sort_keys=False))
        codes = frozenset({0, 1, 2, 3})  # a gate may fail as well
        examples.append(Example(folder, ("pipeline.yaml",), _commands, allowed_of_run=codes))
    return examples


def _small(tree: Any) -> Any:
    """Return a pipeline with fewer steps and samples, tiny models, and without engines."""
    if isinstance(tree, list):
        return [_small(value) for value in tree if not _is_engine(value)]
    if not isinstance(tree, dict):
        return tree
    small = {
        key: _small(value) if key not in _SMALL else _SMALL[key] for key, value in tree.items()
    }
    if small.get("source") == "phone-bed":
        small["num_samples"] = 8
    if small.get("preset") == "bed-teacher":
        small["preset"] = "tiny"
    return small


def _is_engine(value: Any) -> bool:
    """Return True for steps that compile engines, and for gates on them."""
    return isinstance(value, dict) and (
        value.get("type") == "tensorrt" or str(value.get("step")).startswith("engine")
    )


def _commands(rng: random.Random) -> list[list[str]]:
    run = ["run", "pipeline.yaml", "-o", "store", "--allow-code"]
    more = [run] if rng.random() < _RUNS else []
    return [["validate", "pipeline.yaml"], ["plan", "pipeline.yaml", "--allow-code"], *more]


ATTACK = Attack(
    "foreign-pipelines",
    "Mutated pipelines: exit 0, 2 or 3, and no traceback",
    partial(damaged, pipelines, 1000),
)
