"""Check that data sets whose labels are used number the same classes in the same order."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from compressor.data.contract import DataFacts
from compressor.engine.plan.pipeline import Pipeline
from compressor.engine.plan.plan import DataUse
from compressor.errors import Problem

_NAMED_CLASSES = 5
"""Number of classes that a problem names."""


def class_problems(
    pipeline: Pipeline, uses: Iterable[DataUse], facts: Callable[[str], DataFacts]
) -> list[Problem]:
    """Return the data sets whose class names differ from those of the first one.

    Equal labels of such sets mean different classes. Sets without class names, and sets whose
    labels are not used, are not compared.

    Args:
        pipeline: the pipeline.
        uses: the data sets that its steps run models on.
        facts: returns what is known of a data set.
    """
    labelled = dict.fromkeys(use.need.data for use in uses if use.need.labels is not None)
    classes = {name: names for name in labelled if (names := facts(name).class_names) is not None}
    if not classes:
        return []
    first, expected = next(iter(classes.items()))
    return [
        pipeline.document.problem(
            ("data", name),
            f"its classes differ from those of the data set {first!r}, so equal labels mean "
            f"different classes: {_difference(name, names, first, expected)}",
            remedy="name the folders of both sets alike, or name them by the number of the class "
            "and set `numbered: true`",
        )
        for name, names in classes.items()
        if names != expected
    ]


def _difference(name: str, names: tuple[str, ...], other: str, expected: tuple[str, ...]) -> str:
    parts = [
        f"only in {set_name!r}: {_listed(only)}"
        for set_name, only in (
            (name, [value for value in names if value not in expected]),
            (other, [value for value in expected if value not in names]),
        )
        if only
    ]
    return "; ".join(parts) or "the order differs"


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _NAMED_CLASSES} more" if len(names) > _NAMED_CLASSES else ""
    return ", ".join(names[:_NAMED_CLASSES]) + more
