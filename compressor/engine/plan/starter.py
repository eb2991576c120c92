"""Starter pipelines that ``init`` writes, by goal; they are the files in ``starters/``."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from compressor.artifacts.errors_from_os import writing
from compressor.artifacts.files import write_atomic
from compressor.engine.plan.schema import pipeline_schema
from compressor.errors import UsageError

_FOLDER = Path(__file__).parent / "starters"
_PLACEHOLDER = re.compile(r"^ *(?:- )?(\w+): .*#( your.*)$")
"""A line whose comment tells what to put there."""


@dataclass(frozen=True, slots=True)
class WrittenPipeline:
    """A pipeline file, and what is left to do before it can run."""

    file: Path
    missing: tuple[str, ...]
    """What has to be put into it: paths that do not exist yet, fields, or lines."""
    needs_code: bool
    """True if it runs only with ``--allow-code``."""


def starters() -> Mapping[str, str]:
    """Return the name of every starter with what it makes, in one line."""
    return {file.stem: _summary(file) for file in sorted(_FOLDER.glob("*.yaml"))}


def _summary(file: Path) -> str:
    """Return the first comment below the line for editors."""
    return file.read_text("utf-8").splitlines()[1].removeprefix("# ")


def write_starter(folder: Path, name: str) -> WrittenPipeline:
    """Write a starter pipeline and its JSON Schema into ``folder``.

    Raises:
        UsageError: the starter does not exist, or the folder already has a pipeline.yaml.
    """
    known = starters()
    if name not in known:
        remedy = "".join(f"\n    {each:<13} {summary}" for each, summary in known.items())
        raise UsageError(f"there is no starter {name!r}", remedy=f"choose one of{remedy}")
    file = starter_file(folder)
    text = (_FOLDER / f"{name}.yaml").read_text("utf-8")
    write_pipeline(file, text)
    lines = ((number, _PLACEHOLDER.match(line)) for number, line in enumerate(text.split("\n"), 1))
    missing = tuple(f"line {number}: {match[1]}:{match[2]}" for number, match in lines if match)
    return WrittenPipeline(file, missing, needs_code="\n  python: " in text)


def starter_file(folder: Path) -> Path:
    """Return the path of a new pipeline.yaml in ``folder``.

    Raises:
        UsageError: there is one already.
    """
    file = folder / "pipeline.yaml"
    if file.exists():
        raise UsageError(
            f"{file} already exists", remedy="choose another folder, or remove it first"
        )
    return file


def write_pipeline(file: Path, text: str) -> None:
    """Write a pipeline file, and the JSON Schema beside it.

    The pipeline comes last: a command that is killed before can be repeated.
    """
    with writing(file.parent):
        write_atomic(
            file.with_name("pipeline.schema.json"),
            json.dumps(pipeline_schema(), indent=1).encode(),
        )
        write_atomic(file, text.encode())
