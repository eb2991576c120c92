"""Axes that can be cut: sets of units, and every tensor dimension that holds them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, TypeVar

from compressor.config.record import Record
from compressor.models.capabilities.capability import Capability

Field = tuple[str | int, ...]
"""The path of a config's field, as ``("vision_blocks", 1, "expanded")``."""
AxisKind = Literal["channels", "ffn", "heads", "hidden", "layers"]


@dataclass(frozen=True, slots=True)
class Cut:
    """A tensor dimension that holds units: ``segments`` times in a row, ``units`` consecutive blocks of ``block`` indices."""

    tensor: str
    """The name in the state dict."""
    dim: int
    block: int = 1
    segments: int = 1
    """More than one where a matrix holds several side by side, such as gate and up, or the heads of each key group."""
    table: bool = False
    """Whether rows are looked up here: an embedding."""
    norm: bool = False
    """Whether these are the weights of an RMS norm over the units: fewer units have another root mean square."""

    @property
    def reads(self) -> bool:
        """Whether a linear or convolutional layer reads the units here: without this column a unit has no effect on it."""
        return self.dim == 1 and self.tensor.endswith(".weight") and not self.table

    @property
    def module(self) -> str:
        """The name of the module that holds the tensor."""
        return self.tensor.rpartition(".")[0]


@dataclass(frozen=True, slots=True)
class Axis:
    """Units that go together: unit i is cut from all of ``cuts`` or from none; or the layers of a ``stack``."""

    name: str
    kind: AxisKind
    units: int
    cuts: tuple[Cut, ...]
    fields: tuple[tuple[Field, int], ...]
    """Config fields that count the units, and how much each unit counts. Axes of equal fields keep equally many units."""
    stated: tuple[tuple[Field, int | bool], ...] = ()
    """Config fields that follow from others until the axis is cut, and what they then have to say."""

    stack: str = ""
    """For layers, the module list whose members are the units, each a residual function of its first input."""

    first: int = 0
    """The member of the stack that is the first unit."""

    entries: tuple[Field, ...] = ()
    """For layers that no field counts, the entry that each has in a list of the config; it goes with its unit."""

    listed: tuple[Field, ...] = ()
    """Config fields that list something for each unit."""

    dimension: str = ""
    """What users call it; by default the first field."""

    width: str = ""
    """Axes of one ``width`` are cut in proportion, whatever their fields, because the architecture wants it so."""

    @property
    def label(self) -> str:
        """The dimension as one writes it: ``ffn``, ``vision_blocks.1.expanded``."""
        return self.dimension or ".".join(map(str, self.fields[0][0]))

    @property
    def factor(self) -> int:
        """How much of the dimension a unit is."""
        return self.fields[0][1] if self.fields else 1

    def members(self, units: Iterable[int]) -> list[int]:
        """The places of units in their stack."""
        return [self.first + unit for unit in units]


def weight_and_bias(module: str, dim: int, block: int = 1) -> tuple[Cut, ...]:
    """A layer that writes the units: its weight along ``dim``, and its bias."""
    return Cut(f"{module}.weight", dim, block), Cut(f"{module}.bias", 0, block)


def batch_norm(module: str) -> tuple[Cut, ...]:
    """All four vectors of a batch normalization."""
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

    axes: tuple[Axis, ...]


R = TypeVar("R", bound=Record)


def replace_fields(config: R, fields: Mapping[Field, int | bool | list[Any] | None]) -> R:
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


def _parent(tree: Any, path: Field) -> Any:
    """Return the mapping or list that holds the last part of a path."""
    for part in path[:-1]:
        tree = tree[part]
    return tree
