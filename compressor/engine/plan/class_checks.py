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


def class_notes(uses: Iterable[DataUse], facts: Callable[[str], DataFacts]) -> list[str]:
    """Return a line for each data set of fewer named classes than its model has outputs.

    That is right for some models; for one that was trained on other classes the labels are wrong.
    """
    notes: dict[str, None] = {}
    for use in uses:
        names, signature = facts(use.need.data).class_names, use.signature()
        outputs = None if signature is None else signature.classes
        if use.need.labels is None or names is None or outputs is None or len(names) >= outputs:
            continue
        note = (
            f"data set {use.need.data!r} has {_count(len(names))}, and the model {outputs} "
            f"outputs: labels are 0 to {len(names) - 1}, in the order of the names; if the model "
            "was trained on other classes, name the folders by number and set `numbered: true`"
        )
        notes[note] = None
    return list(notes)


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


def _count(number: int) -> str:
    return f"{number} class" if number == 1 else f"{number} classes"
