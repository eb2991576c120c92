"""The folders of a store's runs; nothing in them is read."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

RUNS = "runs"
RECORD, LADDER = "run.json", "ladder.json"


def run_folders(root: Path) -> list[Path]:
    """Return the folders of the runs of the store at ``root``, damaged ones too, oldest first."""
    folders: list[tuple[int, str]] = []
    with suppress(FileNotFoundError, NotADirectoryError), os.scandir(root / RUNS) as entries:
        for entry in entries:
            is_run = any(os.path.lexists(f"{entry.path}/{name}") for name in (RECORD, LADDER))
            if is_run and not entry.name.startswith("."):
                with suppress(FileNotFoundError):
                    folders.append((entry.stat().st_mtime_ns, entry.name))
    return [root / RUNS / name for _, name in sorted(folders)]


def pipeline_of(folder: Path) -> str:
    """Return the pipeline of a run as its folder's name states it: the record may be damaged."""
    return folder.name.rpartition("-")[0]
