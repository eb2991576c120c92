"""Config fields that describe discovered axes, found by building the class with smaller fields.

A field belongs to axes if lowering it changes exactly the tensor dimensions that hold their units,
each by as much as the same part of the units takes up. It counts the units, or groups of them: a
ratio of 4 for an inner width of 128 counts groups of 32.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

from compressor.errors import ModelError
from compressor.models.capabilities.cuttable_axes import Axis, AxisKind, FieldPath
from compressor.models.families.transformers.modules import build_without_data

Shapes = Mapping[str, tuple[int, ...]]
_HEAD_WIDTH = "head_dim"
"""Field that many classes derive from the hidden width and the number of heads if it is absent."""
_MOST_FIELDS = 8
"""Fields that are tried in pairs."""
_MOST_ALTERNATIVES = 3
_MOST_RATIO = 64
"""Largest float field that is tried: larger ones are bases of angles and the like."""
_RATIO_STEPS = 4
"""Steps in which a float ratio is lowered by 1.0; an inner width of a quarter more is exact."""
_MOST_HEADS_PER_UNIT = 64
"""Query heads that share a key head."""


@dataclass(frozen=True, slots=True)
class SmallerClass:
    """A class built with lowered fields."""

    lowered: Mapping[FieldPath, int | float]
    """The fields and their lowered values."""
    changed: Mapping[tuple[str, int], int]
    """Tensor and dimension to the size that it lost."""
    vanished: frozenset[str]
    """Tensors that the smaller class lacks."""


class FieldProbe:
    """Builds a class with lowered fields, each combination once."""

    def __init__(self, tree: Mapping[str, Any]) -> None:
        module = build_without_data(tree)
        self.tree = tree
        self.shapes: Shapes = shapes_of(module)
        config: Any = module.config
        self.sizes = dict(_number_fields(config.to_dict()))
        """Every integer and whole float above 1 of the class's config by path, also those that
        follow from defaults."""
        self.absent = tuple(_null_fields(config.to_dict()))
        """Fields that are null."""
        self._built: dict[tuple[tuple[FieldPath, Any], ...], SmallerClass | None] = {}

    def lower(self, values: Mapping[FieldPath, Any]) -> SmallerClass | None:
        """Return the class with fields set; None if it cannot be built, or has other tensors."""
        key = tuple(sorted(((path, repr(value)) for path, value in values.items()), key=repr))
        if key not in self._built:
            self._built[key] = self._build(values)
        return self._built[key]

    def _build(self, values: Mapping[FieldPath, Any]) -> SmallerClass | None:
        try:
            shapes = shapes_of(build_without_data(with_fields(self.tree, values)))
        except (ModelError, KeyError, IndexError, TypeError, ValueError):
            return None
        except Exception:  # noqa: BLE001  the constructors raise errors of all kinds
            return None
        if not shapes.keys() <= self.shapes.keys():
            return None
        changed: dict[tuple[str, int], int] = {}
        for name, after in shapes.items():
            before = self.shapes[name]
            if len(before) != len(after):
                return None
            changed |= {
                (name, dim): old - new
                for dim, (old, new) in enumerate(zip(before, after, strict=True))
                if old != new
            }
        numbers = {path: value for path, value in values.items() if isinstance(value, int | float)}
        return SmallerClass(numbers, changed, frozenset(self.shapes.keys() - shapes.keys()))


def shapes_of(module: Any) -> dict[str, tuple[int, ...]]:
    """Return the shape of each tensor of the state dict."""
    return {name: tuple(value.shape) for name, value in module.state_dict().items()}


def with_fields(tree: Mapping[str, Any], values: Mapping[FieldPath, Any]) -> dict[str, Any]:
    """Return a copy of config.json with fields set by path; mappings on the way are created."""
    result: dict[str, Any] = _copied(tree)
    for path, value in values.items():
        node: Any = result
        for part in path[:-1]:
            node = node.setdefault(part, {}) if isinstance(node, dict) else node[part]
        node[path[-1]] = value
    return result


def _copied(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _copied(member) for key, member in value.items()}
    return [_copied(member) for member in value] if isinstance(value, list | tuple) else value


def _number_fields(value: Any, path: FieldPath = ()) -> Iterator[tuple[FieldPath, int | float]]:
    if isinstance(value, bool):
        return
    is_ratio = isinstance(value, float) and value <= _MOST_RATIO and value.is_integer()
    if (isinstance(value, int) or is_ratio) and value > 1:
        yield path, value
    elif isinstance(value, Mapping):
        for key, member in value.items():
            if not str(key).endswith(("_token_id", "id2label", "label2id")):
                yield from _number_fields(member, (*path, key))
    elif isinstance(value, list | tuple) and path:
        for index, member in enumerate(value):
            yield from _number_fields(member, (*path, index))


def _null_fields(value: Any, path: FieldPath = ()) -> Iterator[FieldPath]:
    if value is None and not str(path[-1]).endswith("_token_id"):
        yield path
    elif isinstance(value, Mapping):
        for key, member in value.items():
            yield from _null_fields(member, (*path, key))


Alternatives = dict[str, list[Axis]]
"""Name of an axis to descriptions of it that agree with all shapes, such as fewer heads, or heads
of a smaller width; which one is meant shows when the smaller model runs."""


def axes_with_fields(
    axes: Sequence[Axis], probe: FieldProbe, enough: Collection[AxisKind] = ()
) -> Alternatives:
    """Return the axes that fields describe, with these fields.

    Args:
        axes: discovered axes, without layers.
        probe: builds the class with lowered fields.
        enough: kinds of axes; the search ends at the first axis of one of them that a single field
            describes.
    """
    described: Alternatives = {}
    _add_absent_fields(axes, probe)
    singles: list[SmallerClass] = []
    for path in probe.sizes:
        smaller = _lowered(probe, (path,), {})
        if smaller is None or not smaller.changed:
            continue
        singles.append(smaller)
        _describe(axes, smaller, {}, probe, described)
        if any(option.kind in enough for options in described.values() for option in options):
            return described
    for axis in axes:
        if axis.kind == "heads":
            _describe_heads(axis, axes, singles, probe, described)
    return described


def _add_absent_fields(axes: Sequence[Axis], probe: FieldProbe) -> None:
    """Add the fields that are null, and whose default equals the units of an axis of inner widths.

    An example is ``n_inner`` of GPT-2, by default four times the hidden width.
    """
    for units in sorted({axis.units for axis in axes if axis.kind == "ffn"}):
        for path in probe.absent:
            same = probe.lower({path: units})
            if same is None or same.changed or same.vanished:
                continue
            smaller = probe.lower({path: units // 2})
            if smaller is not None and smaller.changed:
                probe.sizes[path] = units


def _lowered(
    probe: FieldProbe, paths: Sequence[FieldPath], pinned: Mapping[FieldPath, int]
) -> SmallerClass | None:
    """Return the class with fields lowered in proportion, to the largest part that works."""
    values = [probe.sizes[path] for path in paths]
    for divisor in (2, 3, 4):
        if any(value % divisor for value in values):
            continue
        lowered = {path: probe.sizes[path] // divisor for path in paths}
        if (smaller := probe.lower({**pinned, **lowered})) is not None:
            return replace(smaller, lowered=lowered)
    if len(paths) == 1 and (smaller := probe.lower({paths[0]: values[0] - 1})) is not None:
        return smaller
    return None


def _describe(
    axes: Sequence[Axis],
    smaller: SmallerClass,
    pinned: Mapping[FieldPath, int],
    probe: FieldProbe,
    described: Alternatives,
) -> None:
    """Add the axes that lowered fields describe, if they explain all changes of shapes."""
    path = next(iter(smaller.lowered))
    before = probe.sizes[path]
    found = [
        axis
        for axis in axes
        if axis.cuts and all((cut.tensor, cut.dim) in smaller.changed for cut in axis.cuts)
    ]
    if smaller.vanished or not found:
        return
    is_ratio = len(smaller.lowered) == 1 and all(_is_ratio(before, axis) for axis in found)
    counts = [probe.sizes[field] % axis.units for field in smaller.lowered for axis in found]
    is_float = isinstance(before, float)
    if (any(counts) or is_float) and not is_ratio:
        return
    if not _explains(found, smaller, path, before):
        return
    steps = 1
    if is_float:  # some classes round the widths
        finer = probe.lower({**pinned, path: before - 1 / _RATIO_STEPS})
        steps = _RATIO_STEPS if finer and _explains(found, finer, path, before) else 1
    name = ".".join(map(str, path))
    is_shared = len({axis.units for axis in found}) > 1  # its units are of different sizes
    for axis in found:
        amounts = {field: int(probe.sizes[field] // axis.units) for field in smaller.lowered}
        ratio_units = axis.units // int(before) if is_ratio else 1
        fields = tuple((field, 1 if is_ratio else amount) for field, amount in amounts.items())
        described.setdefault(axis.name, []).append(
            replace(
                axis,
                fields=fields,
                pinned=tuple(pinned.items()),
                dimension=f"{name}.width" if is_ratio else name,
                width=name if is_shared else "",
                group=ratio_units // steps,
                ratio_units=ratio_units if is_float else 0,
            )
        )


def _explains(axes: Sequence[Axis], smaller: SmallerClass, path: FieldPath, before: float) -> bool:
    """Return True if axes that lose the part by which a field is lowered explain all changes."""
    expected: dict[tuple[str, int], float] = {}
    for axis in axes:
        removed = axis.units * (before - smaller.lowered[path]) / before
        if removed != int(removed):
            return False
        for cut in axis.cuts:
            place = (cut.tensor, cut.dim)
            expected[place] = expected.get(place, 0) + removed * cut.block * cut.segments
    return expected == smaller.changed


def _is_ratio(value: float, axis: Axis) -> bool:
    """Return True if a field may count groups of an axis's units, as ``mlp_ratio`` does."""
    return axis.kind != "heads" and value < axis.units and axis.units % value == 0


def _describe_heads(
    axis: Axis,
    axes: Sequence[Axis],
    singles: Sequence[SmallerClass],
    probe: FieldProbe,
    described: Alternatives,
) -> None:
    """Add an axis of heads that several fields count, or only beside a stated width of heads."""
    places = {(cut.tensor, cut.dim) for cut in axis.cuts}
    overlapping = {
        path for smaller in singles if places & smaller.changed.keys() for path in smaller.lowered
    }
    fields = [
        path
        for path, value in probe.sizes.items()
        if isinstance(value, int)
        and value % axis.units == 0
        and value <= axis.units * _MOST_HEADS_PER_UNIT
    ]
    # The order saves trials: names of such fields usually contain the word.
    fields.sort(key=lambda path: (path not in overlapping, "head" not in str(path[-1])))
    width = min(cut.block for cut in axis.cuts)
    for paths in _pairs_and_single(fields[:_MOST_FIELDS]):
        for pinned in ({}, {(*paths[0][:-1], _HEAD_WIDTH): width}):
            if any(set(dict(known.fields)) == set(paths) for known in described.get(axis.name, ())):
                continue
            smaller = _lowered(probe, paths, pinned)
            if smaller is not None:
                _describe(axes, smaller, pinned, probe, described)
        if len(described.get(axis.name, ())) >= _MOST_ALTERNATIVES:
            return


def _pairs_and_single(fields: Sequence[FieldPath]) -> Iterator[tuple[FieldPath, ...]]:
    """Yield single fields, then pairs of fields of the same part of the config."""
    yield from ((path,) for path in fields)
    for first, second in combinations(fields, 2):
        if first[:-1] == second[:-1]:
            yield first, second
