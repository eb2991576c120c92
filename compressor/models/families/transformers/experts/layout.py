"""Layouts of fused experts: one tensor holds a projection of all experts.

Shapes: E experts, H hidden, M hidden of an expert, R rows of the first projection (M, or 2·M with a
gate).
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor, nn

DOWN = "down_proj"
_GATED, _PLAIN = "gate_up_proj", "up_proj"


@dataclass(frozen=True, slots=True)
class ExpertLayout:
    """Arrangement of the matrices of all experts in the parameters of one module.

    It is that of transformers' ``use_experts_implementation``: ``gate_up_proj`` or ``up_proj``, and
    ``down_proj``, each with an optional ``…_bias``.
    """

    experts: int
    has_gate: bool
    """The first projection holds gate and up; otherwise up alone."""
    has_bias: bool
    is_transposed: bool
    """Matrices are stored [inputs, outputs], not [outputs, inputs]."""
    is_interleaved: bool
    """The rows of gate and up alternate; otherwise all of gate come first."""
    is_routed: bool
    """``forward`` receives tokens, expert indices and their weights; otherwise the same number of
    rows for each expert, in the order of experts (Llama 4)."""

    @property
    def first(self) -> str:
        """Name of the parameter that reads the module's input."""
        return _GATED if self.has_gate else _PLAIN

    @property
    def projections(self) -> tuple[str, ...]:
        """Names of the linear layers of an expert, in the order of computation."""
        return ("gate_proj", "up_proj", DOWN) if self.has_gate else ("up_proj", DOWN)

    @property
    def fused_names(self) -> tuple[str, ...]:
        """Names of the fused parameters."""
        weights = (self.first, DOWN)
        return (*weights, *(f"{name}_bias" for name in weights)) if self.has_bias else weights

    def part_names(self) -> list[str]:
        """Return the names of the tensors of all linear layers, such as ``3.gate_proj.weight``."""
        kinds = ("weight", "bias") if self.has_bias else ("weight",)
        return [
            f"{number}.{projection}.{kind}"
            for number in range(self.experts)
            for projection in self.projections
            for kind in kinds
        ]

    def split(self, fused: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the tensors of linear layers as views, such as ``3.gate_proj.weight`` [M, H].

        Args:
            fused: the fused parameters by name; an absent one is skipped.
        """
        parts: dict[str, Tensor] = {}
        for name in self.fused_names:
            if name not in fused:
                continue
            kind = "bias" if name.endswith("_bias") else "weight"
            values = fused[name]
            if kind == "weight" and self.is_transposed:
                values = values.transpose(1, 2)
            for projection, rows in self._projections_of(name, values):
                for number in range(self.experts):
                    parts[f"{number}.{projection}.{kind}"] = rows[number]
        return parts

    def join(self, parts: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the fused parameters; the inverse of ``split``."""
        fused: dict[str, Tensor] = {}
        for name in self.fused_names:
            kind = "bias" if name.endswith("_bias") else "weight"
            projections = (DOWN,) if name.startswith(DOWN) else self.projections[:-1]
            stacked = [
                torch.stack([parts[f"{number}.{part}.{kind}"] for number in range(self.experts)])
                for part in projections
            ]
            values = stacked[0]
            if len(stacked) == 2:
                values = (
                    torch.stack(stacked, dim=2).flatten(1, 2)
                    if self.is_interleaved
                    else torch.cat(stacked, dim=1)
                )
            if kind == "weight" and self.is_transposed:
                values = values.transpose(1, 2).contiguous()
            fused[name] = values
        return fused

    def joined_rows(self, gate: Tensor, up: Tensor) -> Tensor:
        """Return what the fused projection computes, [..., R], from gate and up, [..., M]."""
        if self.is_interleaved:
            return torch.stack([gate, up], dim=-1).flatten(-2)
        return torch.cat([gate, up], dim=-1)

    def _projections_of(self, name: str, values: Tensor) -> Iterator[tuple[str, Tensor]]:
        """Yield each projection in a fused tensor [E, R, …] with its rows [E, M, …]."""
        if not name.startswith(_GATED):
            yield name.removesuffix("_bias"), values
            return
        half = values.shape[1] // 2
        ways = (slice(0, None, 2), slice(1, None, 2)), (slice(0, half), slice(half, None))
        gate, up = ways[0] if self.is_interleaved else ways[1]
        yield "gate_proj", values[:, gate]
        yield "up_proj", values[:, up]


def possible_layouts(module: nn.Module) -> list[ExpertLayout]:
    """Return the layouts that the parameters of a module allow; none if it holds no experts.

    Modules of ``use_experts_implementation`` state theirs; the shapes of others may leave several.
    """
    parameters = dict(module.named_parameters(recurse=False))
    first = _GATED if _GATED in parameters else _PLAIN
    if not {first, DOWN} <= parameters.keys():
        return []
    up, down = parameters[first], parameters[DOWN]
    if up.ndim != 3 or down.ndim != 3 or len(up) != len(down):
        return []
    has_gate = first == _GATED
    candidates = [
        ExpertLayout(
            experts=len(up),
            has_gate=has_gate,
            has_bias=f"{first}_bias" in parameters,
            is_transposed=is_transposed,
            is_interleaved=has_gate and is_interleaved,
            is_routed=_is_routed(module),
        )
        for is_transposed, is_interleaved in product(
            _stated(module, "is_transposed"), _stated(module, "is_concatenated", negate=True)
        )
    ]
    return [layout for layout in dict.fromkeys(candidates) if _fits(layout, up, down)]


def _stated(module: nn.Module, flag: str, *, negate: bool = False) -> tuple[bool, ...]:
    """Return the value of a flag of the module; both values if it has none."""
    value = getattr(module, flag, None)
    return (False, True) if value is None else (bool(value) is not negate,)


def _is_routed(module: nn.Module) -> bool:
    parameters = list(inspect.signature(type(module).forward).parameters.values())[1:]
    return sum(p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) for p in parameters) >= 3


def _fits(layout: ExpertLayout, up: Tensor, down: Tensor) -> bool:
    """Return True if the projections of an expert have the same widths."""
    up_shape, down_shape = up.shape[1:], down.shape[1:]
    if layout.is_transposed:
        up_shape, down_shape = up_shape[::-1], down_shape[::-1]
    (rows, hidden), (outputs, inputs) = up_shape, down_shape
    return hidden == outputs and rows == inputs * (2 if layout.has_gate else 1)
