"""Tensors of a class of transformers in terms of stored ones, by the library's own mapping.

Transformers renames tensors while it loads them, and merges or splits some, such as the matrices of
experts. ``Conversions`` applies the same rules tensor by tensor, so that a checkpoint can be read
in parts.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    Concatenate,
    MergeModulelist,
    WeightConverter,
    WeightRenaming,
    dot_natural_key,
    rename_source_key,
)

from compressor.models.families.transformers.experts.layout import ExpertLayout
from compressor.models.families.transformers.experts.split import LayoutFinder

Shape = tuple[int, ...]
Read = Callable[[str], Tensor]
"""Returns a stored tensor by name."""
ROW_BITS = 32
"""Bits of a row's number in ``Conversions.origins``."""
_EXPERT_PART = re.compile(r"^(.+)\.(\d+\.(?:gate|up|down)_proj\.(?:weight|bias))$")
"""Tensor of a linear layer of one expert, in classes whose files hold fused experts otherwise."""


@dataclass(slots=True)
class _Conversion:
    """Stored tensors that together give one or several tensors of the class."""

    first_target: str
    converter: WeightConverter | None
    """The operations; None if the tensor is only renamed."""
    sources: list[tuple[str, str]] = field(default_factory=list)
    """Pattern of the converter and name in the files, in the order of transformers."""

    @property
    def renamed(self) -> str | None:
        """Name in the files of a tensor that is only renamed; None for others."""
        return self.sources[0][1] if self.converter is None else None

    def targets(self) -> list[str]:
        """Return the names in the class."""
        if self.converter is None:
            return [self.first_target]
        first, *_ = patterns = self.converter.target_patterns
        return [self.first_target.replace(first, pattern) for pattern in patterns]

    def convert(self, module: PreTrainedModel, read: Read) -> dict[str, Tensor]:
        """Return the tensors of the class from the stored ones."""
        if self.converter is None:
            [(_, stored)] = self.sources
            return {self.first_target: read(stored)}
        converter: Any = deepcopy(self.converter)
        for pattern, stored in self.sources:
            converter.add_tensor(self.first_target, stored, pattern, partial(read, stored))
        converted = converter.convert(self.first_target, model=module, config=module.config)
        return {
            name: value[0] if isinstance(value, list) else value
            for name, value in converted.items()
        }


@dataclass(slots=True)
class _JoinedExperts:
    """Stored linear layers of single experts that are fused in the class.

    Packed checkpoints have them also where float ones hold fused experts, which transformers'
    mapping does not know.
    """

    prefix: str
    layout: ExpertLayout
    sources: dict[str, str] = field(default_factory=dict)
    """Name in the module, such as ``3.up_proj.weight``, to the name in the files."""
    renamed: None = None

    def targets(self) -> list[str]:
        """Return the names in the class."""
        return [f"{self.prefix}.{name}" for name in self.layout.fused_names]

    def missing(self) -> list[str]:
        """Return the tensors of experts that are not stored."""
        return [f"{self.prefix}.{n}" for n in self.layout.part_names() if n not in self.sources]

    def convert(self, _: PreTrainedModel, read: Read) -> dict[str, Tensor]:
        """Return the fused tensors from the stored ones."""
        parts = {name: read(stored) for name, stored in self.sources.items()}
        return {f"{self.prefix}.{k}": value for k, value in self.layout.join(parts).items()}


class Conversions:
    """The conversion of all stored tensors of one checkpoint."""

    def __init__(self, module: PreTrainedModel, stored: Iterable[str]) -> None:
        """Assign the stored tensors to those of the class.

        Args:
            module: the class, its parameters on the device ``meta``.
            stored: names of the stored tensors.
        """
        self.module = module
        self.unexpected: list[str] = []
        """Stored tensors that no tensor of the class is made of."""
        self.collisions: list[str] = []
        """Stored tensors that stand for one tensor of the class, and experts that lack some."""
        self._by_target: dict[str, _Conversion | _JoinedExperts] = {}
        self._assign(stored)

    def _assign(self, stored: Iterable[str]) -> None:
        state: dict[str, Any] = self.module.state_dict()
        mapping = get_model_conversion_mapping(self.module)
        renamings = [entry for entry in mapping if isinstance(entry, WeightRenaming)]
        converters = [entry for entry in mapping if isinstance(entry, WeightConverter)]
        by_pattern = {pattern: entry for entry in converters for pattern in entry.source_patterns}
        prefix = self.module.base_model_prefix
        conversions: dict[str, _Conversion] = {}
        unknown: dict[str, str] = {}
        for name in sorted(stored, key=dot_natural_key):
            target, pattern = rename_source_key(name, renamings, converters, prefix, state)
            if target not in state and name in state:
                target, pattern = rename_source_key(name, [], [], prefix, state)
            if target not in state:
                unknown[name] = target
                continue
            converter = None if pattern is None else by_pattern[pattern]
            conversion = conversions.setdefault(target, _Conversion(target, converter))
            if converter is None and conversion.sources:
                first = conversion.sources[0][1]
                self.collisions.append(f"{first} and {name} both stand for {target}")
            conversion.sources.append((pattern or name, name))
        for conversion in conversions.values():
            self._by_target |= dict.fromkeys(conversion.targets(), conversion)
        self._assign_experts(unknown)

    def _assign_experts(self, unknown: Mapping[str, str]) -> None:
        """Assign linear layers of single experts that the mapping does not know.

        Args:
            unknown: stored name to the name that is in no class.
        """
        finder = LayoutFinder()
        modules = dict(self.module.named_modules())
        experts: dict[str, _JoinedExperts] = {}
        for name, target in unknown.items():
            match = _EXPERT_PART.match(target)
            module = None if match is None else modules.get(match[1])
            layout = None if module is None else finder.find(module)
            if match is not None and layout is not None:
                joined = experts.setdefault(match[1], _JoinedExperts(match[1], layout))
                joined.sources[match[2]] = name
        complete = [joined for joined in experts.values() if not joined.missing()]
        self.collisions += [
            f"{joined.prefix} lacks {', '.join(joined.missing()[:3])}"
            + (f" and {len(joined.missing()) - 3} more" if len(joined.missing()) > 3 else "")
            for joined in experts.values()
            if joined.missing()
        ]
        assigned = {name for joined in complete for name in joined.sources.values()}
        self.unexpected += [name for name in unknown if name not in assigned]
        for joined in complete:
            self._by_target |= dict.fromkeys(joined.targets(), joined)

    @property
    def targets(self) -> set[str]:
        """Names in the class that stored tensors give."""
        return set(self._by_target)

    def renamed(self, target: str) -> str | None:
        """Return the name in the files of a tensor that is only renamed; None for others."""
        return self._by_target[target].renamed

    def merges(self, target: str) -> bool:
        """Return True if the mapping stacks and concatenates stored tensors to one of the class."""
        converter = getattr(self._by_target[target], "converter", None)
        operations = () if converter is None else converter.operations
        return bool(operations) and all(
            isinstance(operation, (Concatenate, MergeModulelist)) for operation in operations
        )

    def origins(self, target: str, stored: Mapping[str, Shape]) -> tuple[list[str], Tensor] | None:
        """Return the stored rows that the rows of a tensor of the class come from.

        Args:
            target: name in the class.
            stored: shapes of the stored tensors by name.

        Returns:
            Stored names, and an int64 tensor of the target's shape with one column: position of
            the name · 2³² + row. None if the target does not consist of stored rows, such as a
            transposed matrix.
        """
        names = list(stored)
        positions = {name: position for position, name in enumerate(names)}

        def read(name: str) -> Tensor:
            rows, *rest = stored[name]
            codes = torch.arange(rows) + (positions[name] << ROW_BITS)
            # Dimensions of different sizes show operations that move values between rows.
            return codes.view(rows, *(1 for _ in rest)).repeat(1, *range(2, 2 + len(rest)))

        try:
            converted = dict(self.convert([target], read))
        except Exception:  # noqa: BLE001  operations that need whole matrices raise anything
            return None
        codes = converted[target]
        if codes.dtype != torch.int64 or not codes.numel():
            return None
        inner = len(stored[names[int(codes.flatten()[0]) >> ROW_BITS]]) - 1
        column = codes
        for axis in range(codes.ndim - inner, codes.ndim):
            column = column.narrow(axis, 0, 1)
        is_of_rows = codes.shape[codes.ndim - inner :] == tuple(range(2, 2 + inner))
        return (names, column) if is_of_rows and bool((codes == column).all()) else None

    def shapes(self, stored: Mapping[str, Shape]) -> dict[str, Shape]:
        """Return the shapes of the converted tensors, computed on the device ``meta``."""

        def read(name: str) -> Tensor:
            return torch.empty(stored[name], device="meta")

        return {name: tuple(value.shape) for name, value in self.convert(self.targets, read)}

    def convert(self, targets: Iterable[str], read: Read) -> Iterator[tuple[str, Tensor]]:
        """Yield tensors of the class.

        Args:
            targets: names in the class.
            read: returns a stored tensor by name.
        """
        wanted = set(targets)
        conversions = {id(self._by_target[name]): self._by_target[name] for name in sorted(wanted)}
        for conversion in conversions.values():
            converted = conversion.convert(self.module, read)
            yield from ((name, value) for name, value in converted.items() if name in wanted)
