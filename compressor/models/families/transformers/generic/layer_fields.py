"""Stacks of layers that a config field counts, found by building the class with fewer layers."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from compressor.models.capabilities.cuttable_axes import Axis, FieldPath
from compressor.models.families.transformers.generic.axis_fields import FieldProbe, Shapes

_MEMBER = re.compile(r"\.(\d+)\.")


def layer_axes(probe: FieldProbe) -> Iterator[Axis]:
    """Yield the stacks whose layers have equal shapes, with the fields that count them."""
    for path, count in probe.sizes.items():
        if not isinstance(count, int) or count > _MOST_LAYERS:
            continue
        lists = tuple(_lists_of(probe.tree, path, count))
        values: dict[FieldPath, Any] = {path: count - 1}
        shortened = {other: _value(probe.tree, other)[:-1] for other in lists}
        smaller = probe.lower({**values, **shortened})
        if smaller is None or smaller.changed or not smaller.vanished:
            continue
        stacks = _stacks(smaller.vanished, probe.shapes, count)
        for stack in stacks or ():
            yield Axis(
                stack,
                "layers",
                count,
                (),
                ((path, 1),),
                stack=stack,
                dimension=".".join(map(str, path)),
                unit_lists=lists,
            )


_MOST_LAYERS = 1000
"""No model has more: a larger number counts something else."""


def _value(tree: Mapping[str, Any], path: FieldPath) -> Any:
    node: Any = tree
    for part in path:
        node = node[part]
    return node


def _lists_of(tree: Mapping[str, Any], path: FieldPath, count: int) -> Iterator[FieldPath]:
    """Yield the lists of config.json beside a field that have as many entries as it counts."""
    try:
        siblings = _value(tree, path[:-1])
    except (KeyError, IndexError):
        return
    if isinstance(siblings, Mapping):
        for name, value in siblings.items():
            if isinstance(value, list) and len(value) == count and not _is_size_list(path, name):
                yield (*path[:-1], name)


def _is_size_list(path: FieldPath, name: str) -> bool:
    """Return True if a path goes through the list itself, such as ``depths.1``."""
    return name in path


def _stacks(vanished: frozenset[str], shapes: Shapes, count: int) -> list[str] | None:
    """Return the module lists whose last members are the tensors that vanished.

    None if other tensors vanished too, or the members of a list differ.
    """
    stacks: set[str] = set()
    for name in vanished:
        found = [
            name[: match.start()]
            for match in _MEMBER.finditer(name)
            if int(match.group(1)) == count - 1
        ]
        if not found:
            return None
        stacks.add(found[0])
    for stack in stacks:
        members = [_member_shapes(shapes, f"{stack}.{number}.") for number in range(count)]
        last = frozenset(f"{stack}.{count - 1}.{rest}" for rest in members[-1])
        is_whole = last <= vanished and all(member == members[0] for member in members)
        if not is_whole or _member_shapes(shapes, f"{stack}.{count}."):
            return None
    return sorted(stacks)


def _member_shapes(shapes: Shapes, prefix: str) -> dict[str, tuple[int, ...]]:
    return {
        name.removeprefix(prefix): shape
        for name, shape in shapes.items()
        if name.startswith(prefix)
    }
