"""Mutated files of other runtimes, as the exports write them: GGUF, .ort and MNN."""

from __future__ import annotations

import json
import random
import shutil
from functools import partial
from pathlib import Path

from tests.support.forked import run_forked
from tests.torture.examples import Example, write_pipeline
from tests.torture.foreign_files import damaged
from tests.torture.registry import Attack

_RUNS = 0.4
"""Share of the cases that run a pipeline, which measures the model where it can be executed."""


def exports(root: Path) -> list[Example]:
    """Return tiny models as each of the exports writes them, with a pipeline that measures them."""
    import numpy as np

    from tests.support.foreign_graphs import IMAGES
    from tests.support.gguf_checkpoints import export_gguf, save_gguf_parent

    for name in ("gguf", "ort", "mnn"):
        (root / name).mkdir()
        np.savez(root / name / "d.npz", image=IMAGES[:4])
        _write_measured(root / name / "measured.yaml")
    export_gguf(save_gguf_parent(root / "checkpoint"), root / "gguf" / "m")
    for name in ("ort", "mnn"):
        _export(root / name, f"export-{name}")
    return [
        Example(root / "gguf", ("m/*",), _commands, _CODES),
        Example(root / "ort", ("m/*.ort", "m/*.onnx"), _commands, _CODES),
        Example(root / "mnn", ("m/*.mnn", "m/*.onnx"), _commands, _CODES),
    ]


def _export(folder: Path, pass_name: str) -> None:
    """Write what a pass makes of a tiny graph; in a child, since threads of MNN survive no fork."""
    import onnx

    from tests.support.foreign_graphs import residual_network

    (folder / "parent").mkdir()
    onnx.save(residual_network(), folder / "parent" / "model.onnx")
    file = folder / "export.yaml"
    step = {"type": pass_name, "name": "exported", "parity": {"data": "d"}}
    write_pipeline(file, "parent", _DATA, step)
    outcome = run_forked("run", file, "-o", folder / "built")
    assert outcome.code == 0, outcome.printed
    (made,) = (folder / "built").glob(f"{pass_name}-*/model")
    made.rename(folder / "m")
    for rest in ("built", "parent"):
        shutil.rmtree(folder / rest)
    file.unlink()


def _write_measured(file: Path) -> None:
    write_pipeline(file, "m", _DATA)
    file.write_text(file.read_text() + json.dumps(_EVALUATE)[1:-1] + "\n")


_DATA = {"source": "arrays", "path": "d.npz"}
_CODES = frozenset({0, 1, 2})
"""1: `lint` finds problems."""
_EVALUATE = {"evaluate": {"latency": {"data": "d", "repeats": 2, "warmup": 0}, "call_timeout": 20}}


def _commands(rng: random.Random) -> list[list[str]]:
    chosen = [
        ["show", "m"],
        rng.choice((["show", "m", "--json"], ["init", "new", "--from", "m"])),
        ["lint", "m"],
        ["plan", "measured.yaml"],
    ]
    if rng.random() < _RUNS:
        chosen.append(["run", "measured.yaml", "-o", "store"])
    return chosen


ATTACK = Attack(
    "foreign-exports",
    "Mutated GGUF, .ort and MNN files: exit 0, 1 or 2, no traceback, no hang, at most 1 GB",
    partial(damaged, exports, 500),
)
