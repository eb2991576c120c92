"""The family tree of a run's steps: which steps a step can be compared with."""

from __future__ import annotations

from collections.abc import Mapping


def closest_relatives(step: str, parents: Mapping[str, str | None]) -> list[str]:
    """Return the earlier steps that share an ancestor with a step, the closest first.

    Args:
        step: Name of the step.
        parents: Every step of the run with the step that it was made from, in run order.

    Returns:
        The ancestors, nearest first, and then the earlier steps that were made from each of them:
        first those of the nearest ancestor.
    """
    ancestors = _ancestors(step, parents)
    earlier = list(parents)[: list(parents).index(step)]
    lineages = {name: _ancestors(name, parents) for name in earlier}
    related = (name for ancestor in ancestors for name in earlier if ancestor in lineages[name])
    return list(dict.fromkeys((*ancestors, *related)))


def _ancestors(step: str, parents: Mapping[str, str | None]) -> list[str]:
    """Return the steps that a step was made from, nearest first."""
    ancestors = []
    parent = parents.get(step)
    while parent is not None:
        ancestors.append(parent)
        parent = parents.get(parent)
    return ancestors
