"""Mutated archives, manifests, reports and records: one file of each is damaged or replaced."""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path

from tests.support.tiny_files import tiny_onnx
from tests.torture.examples import Commands, Example
from tests.torture.foreign_files import damaged, run_at
from tests.torture.registry import Attack


def archives(root: Path) -> list[Example]:
    """Return an archive of an artifact, and the store that holds it."""
    folder = root / "a"
    folder.mkdir(parents=True)
    toy = root / "toy"
    (toy / "model").mkdir(parents=True)
    (toy / "model" / "model.onnx").write_bytes(tiny_onnx())
    (toy / "p.yaml").write_text(
        "version: 1\nname: toy\nmodel: {path: model}\npasses:\n  - {type: toy, name: first}\n"
    )
    outcome = run_at(toy, ["run", "p.yaml", "-o", "store"])
    assert not outcome.code, outcome.printed
    artifact = next(path for path in (toy / "store").iterdir() if path.name.startswith("toy-"))
    outcome = run_at(toy, ["archive", str(artifact), str(folder / "x.tar.zst")])
    assert not outcome.code, outcome.printed
    shutil.copytree(toy / "store", folder / "store")
    name = artifact.name
    readers: Commands = lambda _: [  # noqa: E731
        ["show", f"store/{name}"],
        ["verify", "store"],
        ["show", "store"],
        ["report", "store"],
        ["compare", f"store/{name}", f"store/{name}"],
    ]
    return [
        Example(
            folder,
            ("x.tar.zst",),
            lambda _: [["restore", "x.tar.zst", "-o", "new"], ["show", "x.tar.zst"]],
            frozenset({0, 4, 2}),
        ),
        Example(folder, ("store/**/*.json",), readers, frozenset({0, 2, 4})),
    ]


ATTACK = Attack(
    "foreign-archives",
    "Mutated archives, manifests, reports and records: exit 0, 2 or 4, no traceback",
    partial(damaged, archives, 500),
)
