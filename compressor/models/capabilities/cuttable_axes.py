"""Axes that can be cut: sets of units, and every tensor dimension that holds them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, TypeVar

from compressor.config.record import Record
from compressor.models.capabilities.capability import Capability

FieldPath = tuple[str | int, ...]
"""Path of a field in a config, such as ``("vision_blocks", 1, "expanded")``."""
AxisKind = Literal["channels", "ffn", "heads", "hidden", "layers"]


@dataclass(frozen=True, slots=True)
class Cut:
    """A tensor dimension that holds units.

    It has ``segments`` segments; each holds one block of ``block`` consecutive indices per unit.
    """

    tensor: str
    """Name in the state dict."""
    dim: int
    block: int = 1
    """Indices of a unit in one segment."""
    segments: int = 1
    """More than 1 where a matrix holds several side by side, such as gate and up, or the heads of
    each key group."""
    table: bool = False
    """True for an embedding, whose rows are looked up."""
    norm: bool = False
    """True for the weight of an RMS norm over the units: fewer units have another mean square."""
    offset: int = 0
    """First index of the units; other indices of the dimension may hold other things."""
    reader: bool | None = None
    """True if a product sums over the units here; None if that follows from the dimension."""

    @property
    def reads(self) -> bool:
        """True if a linear or convolutional layer reads the units here.

        Without its columns a unit has no effect on the layer.
        """
        if self.reader is not None:
            return self.reader
        return self.dim == 1 and self.tensor.endswith(".weight") and not self.table

    @property
    def module(self) -> str:
        """Name of the module that holds the tensor."""
        return self.tensor.rpartition(".")[0]


@dataclass(frozen=True, slots=True)
class Axis:
    """Units that are cut together: unit i from all of ``cuts``, or the layers of a ``stack``.

    The dependency groups of Fang et al. 2023 (DepGraph).
    """

    name: str
    kind: AxisKind
    units: int
    """Number of units."""
    cuts: tuple[Cut, ...]
    fields: tuple[tuple[FieldPath, int], ...]
    """Config fields that count the units, with the amount per unit. Axes with equal fields keep
    equally many units."""
    pinned: tuple[tuple[FieldPath, int | bool], ...] = ()
    """Config fields that default to a function of others, with the values to write once the axis
    is cut."""
    stack: str = ""
    """Layers only: module list whose members are the units, each a residual function of its first
    input."""
    first: int = 0
    """Index in the stack of the first unit."""
    unit_entries: tuple[FieldPath, ...] = ()
    """Layers that no field counts only: entry of each unit in a list of the config, which is
    removed with the unit."""
    unit_lists: tuple[FieldPath, ...] = ()
    """Config fields with a list of one value per unit."""
    dimension: str = ""
    """Name for users; empty: the path of the first field."""
    width: str = ""
    """Axes with the same ``width`` are cut in proportion, whatever their fields: the architecture
    requires it."""
    group: int = 1
    """Units that the fields count as one, such as the hidden width for a ratio of inner widths:
    kept units are a multiple of them."""
    ratio_units: int = 0
    """Units that a float field counts as 1.0, such as the hidden width for a ratio of inner widths
    of 4.0; 0 where the fields hold integers."""
    shapes_field: str = ""
    """Config field with the shapes of tensors, by name, for axes that no other field describes."""

    @property
    def label(self) -> str:
        """Name of the dimension for users: ``ffn``, ``vision_blocks.1.expanded``."""
        return self.dimension or ".".join(map(str, self.fields[0][0]))

    @property
    def factor(self) -> int:
        """Amount of the dimension per unit."""
        return self.fields[0][1] if self.fields and self.group == 1 else 1

    def field_values(self, units: int) -> dict[FieldPath, int | float]:
        """Return the values of the config fields for a number of units."""
        if self.ratio_units:
            return {path: units / self.ratio_units for path, _ in self.fields}
        return {path: units * amount // self.group for path, amount in self.fields}

    def members(self, units: Iterable[int]) -> list[int]:
        """Return the indices of units in their stack."""
        return [self.first + unit for unit in units]


def weight_and_bias(module: str, dim: int, block: int = 1) -> tuple[Cut, ...]:
    """Return the cuts of a layer whose output holds the units: weight along ``dim``, and bias."""
    return Cut(f"{module}.weight", dim, block), Cut(f"{module}.bias", 0, block)


def batch_norm(module: str) -> tuple[Cut, ...]:
    """Return the cuts of the four vectors of a batch normalization."""
    return tuple(
        Cut(f"{module}.{name}", 0) for name in ("weight", "bias", "running_mean", "running_var")
    )


@dataclass(frozen=True, slots=True)
class CuttableAxes(Capability):
    """The axes of a model.

    ``prune`` scores the units of each axis, cuts the least important ones from all tensors that
    hold them, and writes the new sizes into the config. It works on axes alone, without knowledge
    of the architecture.
    """

    label: ClassVar[str] = "cuttable axes"
    remedy: ClassVar[str] = (
        "return them from the family's `capabilities`, as "
        "compressor/models/families/autoglm_phone/axes.py does"
    )
    in_config: ClassVar[bool] = True

    axes: tuple[Axis, ...]


R = TypeVar("R", bound=Record)


def replace_fields(
    config: R, fields: Mapping[FieldPath, int | float | bool | list[Any] | dict[str, Any] | None]
) -> R:
    """Return the config with fields replaced by path; None removes an entry from a list.

    Raises:
        pydantic.ValidationError: the fields do not fit together.
    """
    tree = config.model_dump(mode="json")
    removed = [path for path, value in fields.items() if value is None]
    for path, value in fields.items():
        if value is not None:
            _parent(tree, path)[path[-1]] = value
    # From the end, so that the indices of the entries still to be removed stay valid.
    for path in sorted(removed, reverse=True):
        del _parent(tree, path)[path[-1]]
    return type(config).model_validate_json(json.dumps(tree))


def _parent(tree: Any, path: FieldPath) -> Any:
    """Return the mapping or list that holds the last part of a path."""
    for part in path[:-1]:
        # A mapping that the config leaves out has default fields.
        tree = tree.setdefault(part, {}) if isinstance(tree, dict) else tree[part]
    return tree
