"""Tensors of a class of transformers in terms of stored ones, by the library's own mapping.

Transformers renames tensors while it loads them, and merges or splits some, such as the matrices of
experts. ``Conversions`` applies the same rules tensor by tensor, so that a checkpoint can be read
in parts.
"""

from __future__ import annotations

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
    WeightConverter,
    WeightRenaming,
    dot_natural_key,
    rename_source_key,
)

Shape = tuple[int, ...]


@dataclass(slots=True)
class _Conversion:
    """Stored tensors that together give one or several tensors of the class."""

    first_target: str
    converter: WeightConverter | None
    """The operations; None if the tensor is only renamed."""
    sources: list[tuple[str, str]] = field(default_factory=list)
    """Pattern of the converter and name in the files, in the order of transformers."""

    def targets(self) -> list[str]:
        """Return the names in the class."""
        if self.converter is None:
            return [self.first_target]
        first, *_ = patterns = self.converter.target_patterns
        return [self.first_target.replace(first, pattern) for pattern in patterns]

    def convert(self, module: PreTrainedModel, read: Callable[[str], Tensor]) -> dict[str, Tensor]:
        """Return the tensors of the class from those that ``read`` returns by stored name."""
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
        """Stored tensors that stand for one tensor of the class."""
        self._by_target: dict[str, _Conversion] = {}
        self._assign(stored)

    def _assign(self, stored: Iterable[str]) -> None:
        state: dict[str, Any] = self.module.state_dict()
        mapping = get_model_conversion_mapping(self.module)
        renamings = [entry for entry in mapping if isinstance(entry, WeightRenaming)]
        converters = [entry for entry in mapping if isinstance(entry, WeightConverter)]
        by_pattern = {pattern: entry for entry in converters for pattern in entry.source_patterns}
        prefix = self.module.base_model_prefix
        conversions: dict[str, _Conversion] = {}
        for name in sorted(stored, key=dot_natural_key):
            target, pattern = rename_source_key(name, renamings, converters, prefix, state)
            if target not in state and name in state:
                target, pattern = rename_source_key(name, [], [], prefix, state)
            if target not in state:
                self.unexpected.append(name)
                continue
            converter = None if pattern is None else by_pattern[pattern]
            conversion = conversions.setdefault(target, _Conversion(target, converter))
            if converter is None and conversion.sources:
                first = conversion.sources[0][1]
                self.collisions.append(f"{first} and {name} both stand for {target}")
            conversion.sources.append((pattern or name, name))
        for conversion in conversions.values():
            self._by_target |= dict.fromkeys(conversion.targets(), conversion)

    @property
    def targets(self) -> set[str]:
        """Names in the class that stored tensors give."""
        return set(self._by_target)

    def renamed(self, target: str) -> str | None:
        """Return the name in the files of a tensor that is only renamed; None for others."""
        conversion = self._by_target[target]
        return conversion.sources[0][1] if conversion.converter is None else None

    def shapes(self, stored: Mapping[str, Shape]) -> dict[str, Shape]:
        """Return the shapes of the converted tensors, computed on the device ``meta``."""

        def read(name: str) -> Tensor:
            return torch.empty(stored[name], device="meta")

        return {name: tuple(value.shape) for name, value in self.convert(self.targets, read)}

    def convert(
        self, targets: Iterable[str], read: Callable[[str], Tensor]
    ) -> Iterator[tuple[str, Tensor]]:
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
