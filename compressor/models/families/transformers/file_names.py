"""Names in the files of the tensors of a class of transformers, with its experts split.

Consumers expect a packed checkpoint to have the names of the float one: vLLM reads those names, and
transformers converts them while loading. The class has other names, and fuses some tensors.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.quantizers.base import MODULES_TO_PATCH_FOR_QUANTIZATION

from compressor.models.families.transformers.conversion import ROW_BITS, Conversions, Shape
from compressor.models.families.transformers.experts.split import SplitExperts, named_experts
from compressor.models.quantized.packed_linear import PackedLinear

_WEIGHT = ".weight"


@dataclass(frozen=True, slots=True)
class FilePart:
    """A stored tensor that holds rows of a tensor of the class."""

    name: str
    rows: Tensor | None = None
    """Rows of the class's tensor in the order of the file; None for all of it."""


class FileNames:
    """Names and parts under which tensors of a class are written."""

    def __init__(
        self, module: PreTrainedModel, conversions: Conversions, stored: Mapping[str, Shape]
    ) -> None:
        """Take the names from a checkpoint of the class.

        Args:
            module: the class, its experts split (``split_experts``).
            conversions: from the stored tensors to those of the class.
            stored: shapes of the stored tensors by name.
        """
        self._conversions, self._stored = conversions, stored
        self._experts: dict[str, tuple[str, SplitExperts]] = {
            f"{prefix}{part}": (prefix, experts)
            for prefix, experts in named_experts(module)
            for part in experts.expert_layout.part_names()
        }
        self._expert_parts = lru_cache(maxsize=None)(self._find_expert_parts)

    def holds(self, name: str) -> bool:
        """Return True if the files hold a tensor of the class; of tied ones they may hold one."""
        return name in self._experts or name in self._conversions.targets

    def parts(self, name: str) -> list[FilePart]:
        """Return the stored tensors that together hold a tensor of the class.

        A tensor that does not consist of whole stored rows keeps its name in the class; that of an
        expert does where the files hold fused experts.
        """
        if name in self._experts:
            prefix, _ = self._experts[name]
            return [FilePart(self._expert_parts(prefix).get(name, name))]
        if (stored_name := self._conversions.renamed(name)) is not None:
            return [FilePart(stored_name)]
        origins = self._conversions.origins(name, self._stored)
        return [FilePart(name)] if origins is None else _file_parts(name, *origins, self._stored)

    def tensors(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return tensors of the class by their names in the files."""
        return {
            part.name: value if part.rows is None else value[part.rows]
            for name, value in tensors.items()
            for part in self.parts(name)
        }

    def packed(self, layers: Mapping[str, PackedLinear]) -> dict[str, PackedLinear]:
        """Return packed layers of the class by their names in the files.

        Args:
            layers: by the name of the linear layer.
        """
        return {
            part.name: value if part.rows is None else value.take_rows(part.rows)
            for name, value in layers.items()
            for part in self.packed_parts(name)
        }

    def packed_parts(self, layer: str) -> list[FilePart]:
        """Return the packed layers in the files that together hold one of the class."""
        parts = self.parts(f"{layer}{_WEIGHT}")
        if not all(part.name.endswith(_WEIGHT) for part in parts):
            return [FilePart(layer)]
        return [FilePart(part.name.removesuffix(_WEIGHT), part.rows) for part in parts]

    def experts_unknown_to_transformers(self) -> list[str]:
        """Return the modules with experts that ``from_pretrained`` cannot fill from packed files.

        It merges packed experts where its mapping stacks and concatenates those of float files, and
        builds linear layers for the classes in a table of its quantizers. Others keep random
        weights there, or are refused where the mapping has operations for float tensors alone.
        """
        return [
            prefix.removesuffix(".")
            for prefix, experts in dict(self._experts.values()).items()
            if type(experts).__mro__[2].__name__ not in MODULES_TO_PATCH_FOR_QUANTIZATION
            and not (self._expert_parts(prefix) and self._merges(prefix, experts))
        ]

    def _merges(self, prefix: str, experts: SplitExperts) -> bool:
        fused = experts.expert_layout.fused_names
        return all(self._conversions.merges(f"{prefix}{name}") for name in fused)

    def _find_expert_parts(self, prefix: str) -> dict[str, str]:
        """Return the stored names of the linear layers of experts that are stored one by one."""
        experts = next(experts for start, experts in self._experts.values() if start == prefix)
        names: dict[str, str] = {}
        for fused in experts.expert_layout.fused_names:
            target = f"{prefix}{fused}"
            if self._conversions.renamed(target) is not None:
                continue
            origins = self._conversions.origins(target, self._stored)
            if origins is None:
                continue
            stored_names, codes = origins
            for part, rows in experts.expert_layout.split({fused: codes}).items():
                found = _file_parts(part, stored_names, rows, self._stored)
                if len(found) == 1 and found[0].rows is None and found[0].name in self._stored:
                    names[f"{prefix}{part}"] = found[0].name
        return names


def _file_parts(
    name: str, stored_names: list[str], codes: Tensor, stored: Mapping[str, Shape]
) -> list[FilePart]:
    """Return the stored tensors that codes of ``Conversions.origins`` stand for."""
    codes = codes.flatten()
    positions, rows = codes >> ROW_BITS, codes & ((1 << ROW_BITS) - 1)
    parts = []
    for position in sorted({*positions.tolist()}):
        part = stored_names[position]
        [of_part] = torch.where(positions == position)
        order = of_part[rows[of_part].argsort()]
        if not torch.equal(rows[order], torch.arange(stored[part][0])):
            return [FilePart(name)]  # some rows are left out, or repeated
        is_whole = torch.equal(order, torch.arange(len(codes)))
        parts.append(FilePart(part, None if is_whole else order))
    return parts
