"""Axes from joined nodes: equal units, and the tensor dimensions that hold them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from compressor.models.capabilities.cuttable_axes import Axis, AxisKind, Cut
from compressor.models.capabilities.discovered_axes.channel_graph import ChannelGraph, Weight
from compressor.models.capabilities.discovered_axes.labels import FROZEN, Nodes

_Place = tuple[int, int]
"""Number of a weight, and one of its dimensions."""


@dataclass(frozen=True, slots=True)
class _Marks:
    """Nodes with a property, each as a mask over all nodes."""

    reads: np.ndarray[tuple[int], np.dtype[np.bool_]]
    """By node."""
    heads: frozenset[int]
    """By representative, as the others."""
    convolved: frozenset[int]


def group_axes(graph: ChannelGraph) -> tuple[Axis, ...]:
    """Return the axes of a module: sets of units that take up equal parts of the same tensors."""
    places = {
        (number, dim): graph.tracks.sets.roots(np.arange(first, first + size, dtype=np.int64))
        for number, weight in enumerate(graph.weights)
        for dim, (size, first) in enumerate(zip(weight.shape, weight.first_nodes, strict=True))
        if size > 1
    }
    marks = _marks(graph)
    axes = (_axis(graph, units, held, places, marks) for held, units in _equal_units(places))
    return tuple(axis for axis in axes if axis is not None)


def _marks(graph: ChannelGraph) -> _Marks:
    sets = graph.tracks.sets
    last = max(
        (weight.first_nodes[-1] + weight.shape[-1] for weight in graph.weights if weight.shape),
        default=2,
    )
    reads = np.zeros(last, dtype=np.bool_)
    for nodes in graph.reads:
        reads[nodes] = True
    heads, convolved = (
        frozenset(np.unique(np.concatenate([sets.roots(nodes) for nodes in lists])).tolist())
        if lists
        else frozenset()
        for lists in (graph.heads, graph.convolved)
    )
    return _Marks(reads, heads, convolved)


def _equal_units(
    places: dict[_Place, Nodes],
) -> Iterator[tuple[tuple[tuple[_Place, int], ...], list[int]]]:
    """Yield the places that a kind of unit takes up, with the indices in each, and the units."""
    held: dict[int, list[tuple[_Place, int]]] = {}
    for place, roots in places.items():
        units, counts = np.unique(roots, return_counts=True)
        for unit, count in zip(units.tolist(), counts.tolist(), strict=True):
            if unit != FROZEN:
                held.setdefault(unit, []).append((place, count))
    by_form: dict[tuple[tuple[_Place, int], ...], list[int]] = {}
    for unit, form in held.items():
        if len(form) > 1:
            by_form.setdefault(tuple(form), []).append(unit)
    yield from ((form, units) for form, units in by_form.items() if len(units) > 1)


def _axis(
    graph: ChannelGraph,
    units: list[int],
    held: tuple[tuple[_Place, int], ...],
    places: dict[_Place, Nodes],
    marks: _Marks,
) -> Axis | None:
    """Return the axis of equal units; None if no layer reads them or they lie irregularly."""
    first_place = held[0][0]
    order = _in_order(places[first_place], units)
    cuts: list[Cut] = []
    is_read = False
    for place, _ in held:
        weight = graph.weights[place[0]]
        spans = _spans(places[place], order)
        if spans is None:
            return None
        first = weight.first_nodes[place[1]]
        reads = bool(marks.reads[first : first + weight.shape[place[1]]].any())
        is_read = is_read or reads
        for name in weight.names:
            cuts += [
                Cut(name, place[1], block, segments, reader=reads, offset=offset)
                for offset, block, segments in spans
            ]
    if not is_read:
        return None
    kind = _kind(units, marks)
    return Axis(_name(graph.weights, held), kind, len(units), tuple(cuts), ())


def _in_order(roots: Nodes, units: list[int]) -> dict[int, int]:
    """Return the position of each unit, by first occurrence."""
    members = set(units)
    order: dict[int, int] = {}
    for root in roots.tolist():
        if root in members and root not in order:
            order[root] = len(order)
    return order


def _spans(roots: Nodes, order: dict[int, int]) -> list[tuple[int, int, int]] | None:
    """Return (offset, block, segments) of the indices that hold units; None if irregular.

    Each segment holds the units one after another, every one with ``block`` indices.
    """
    position = np.array([order.get(root, -1) for root in roots.tolist()])
    spans: list[tuple[int, int, int]] = []
    index = 0
    while index < len(position):
        if position[index] < 0:
            index += 1
            continue
        block = 1
        while index + block < len(position) and position[index + block] == position[index]:
            block += 1
        size = len(order) * block
        expected = np.repeat(np.arange(len(order)), block)
        if not np.array_equal(position[index : index + size], expected):
            return None
        previous = spans[-1] if spans else None
        if previous and previous[1] == block and previous[0] + previous[2] * size == index:
            spans[-1] = (previous[0], block, previous[2] + 1)
        else:
            spans.append((index, block, 1))
        index += size
    return spans


def _kind(units: list[int], marks: _Marks) -> AxisKind:
    if marks.heads & set(units):
        return "heads"
    return "channels" if marks.convolved & set(units) else "ffn"


def _name(weights: tuple[Weight, ...], held: tuple[tuple[_Place, int], ...]) -> str:
    """Return the name of the module whose rows are the first to hold the units."""
    (number, _), _ = min(held, key=lambda entry: (entry[0][1] != 0, entry[0][0]))
    return weights[number].names[0].rpartition(".")[0] or weights[number].names[0]
