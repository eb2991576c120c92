"""Plugin discovery through entry points: passes, data sources, families, formats and metrics."""

from __future__ import annotations

from difflib import get_close_matches
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from compressor.errors import UsageError

PASSES = "autoglm_compress.passes"
SOURCES = "autoglm_compress.sources"
FAMILIES = "autoglm_compress.families"
FORMATS = "autoglm_compress.formats"
METRICS = "autoglm_compress.metrics"
_NOUN = {
    PASSES: "pass",
    SOURCES: "data source",
    FAMILIES: "model family",
    FORMATS: "model format",
    METRICS: "metric",
}


@cache
def _group(group: str) -> dict[str, EntryPoint]:
    return {
        point.name: point
        for point in sorted(entry_points(group=group), key=lambda point: point.name)
    }


def names(group: str) -> list[str]:
    """Return the names registered in a group, sorted."""
    return list(_group(group))


@cache
def load(group: str, name: str) -> Any:
    """Return an instance of the class registered under ``name``; one per process.

    Raises:
        UsageError: nothing of that name is installed, or it cannot be imported.
    """
    point = _group(group).get(name)
    if point is None:
        raise UsageError(f"unknown {_NOUN[group]} {name!r}", remedy=suggestion(name, names(group)))
    try:
        return point.load()()
    except ImportError as error:
        raise UsageError(
            f"the {_NOUN[group]} {name!r} ({point.value}) cannot be imported: {error}"
        ) from error


def suggestion(name: str, known: list[str]) -> str:
    """Return ``did you mean …?`` if a known name is close, else the list of known names."""
    match = closest(name, known)
    return f"did you mean {match!r}?" if match else f"known: {', '.join(sorted(known)) or 'none'}"


def closest(name: str, known: list[str]) -> str | None:
    """Return the known name that is most similar; None if none is close."""
    matches = get_close_matches(name, known, n=1, cutoff=0.6)
    return matches[0] if matches else None
