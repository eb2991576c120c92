"""What the torture of foreign files attacks: folders, files in them, and commands that read them.

Each attack on foreign files builds its own examples: tiny real models, data and pipelines, with
which every command succeeds before a file is damaged.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import pkgutil
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

import calibration
import compressor
import passes

Commands = Callable[[random.Random], list[list[str]]]


@dataclass(slots=True)
class Example:
    """One folder to attack."""

    folder: Path
    patterns: tuple[str, ...]
    """The files that are mutated, by pattern."""
    commands: Commands
    allowed: frozenset[int] = field(default=frozenset({0, 2}))
    """Exit codes of the commands but for `run`."""
    allowed_of_run: frozenset[int] = field(default=frozenset({0, 1, 2}))
    """1: a step may find that it cannot work with a model or data, such as constant images."""

    def targets(self, folder: Path) -> list[Path]:
        """Return the files to mutate in a copy of the folder."""
        return sorted(
            {file for pattern in self.patterns for file in folder.glob(pattern) if file.is_file()}
        )


def warm_up() -> None:
    """Import what the commands import, so that a forked child starts at once."""
    import onnx  # noqa: F401
    import onnxruntime  # noqa: F401
    import PIL.Image  # noqa: F401
    import torch
    import transformers

    from compressor.runtimes.formats import installed_formats

    for package in (compressor, passes, calibration):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            with contextlib.suppress(ImportError):  # of an extra that is not installed
                importlib.import_module(module.name)
    torch.set_num_threads(1)
    installed_formats()
    _ = transformers.AutoTokenizer, transformers.AutoConfig, transformers.AutoImageProcessor
    gc.freeze()


def write_pipeline(
    file: Path,
    model: str,
    data: dict[str, Any],
    *passes: dict[str, Any],
    metrics: tuple[str, ...] = (),
) -> None:
    """Write a pipeline with one data set, ``d``, which its metrics are measured on."""
    tree: dict[str, Any] = {
        "version": 1,
        "name": "attacked",
        "threads": 1,
        "model": {"path": model},
        "data": {"d": data},
        "passes": list(passes),
    }
    if metrics:
        tree["evaluate"] = {"accuracy": {"data": "d", "metrics": list(metrics), "batch_size": 2}}
    file.write_text(yaml.safe_dump(tree, sort_keys=False))
