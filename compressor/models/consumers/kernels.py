"""Kernels of vLLM 0.32 for weights of few bits beside 16-bit activations; no torch.

``tests/unit/models/consumers/test_vllm_kernels.py`` holds the table against ``can_implement`` of
vLLM's own classes where vllm is installed. Kernels of packages that vLLM does not bring along
(Conch, Humming) are left out: releases differ in whether they are there.
"""

from __future__ import annotations

from dataclasses import dataclass

from compressor.models.consumers.targets import VllmServer
from compressor.models.quantized.weight_grid import WeightGrid

VLLM_VERSION = "0.32"
"""Release of vLLM from which the rules were taken."""
_FOUR_BITS = frozenset({(4, True), (4, False)})


@dataclass(frozen=True, slots=True)
class Partition:
    """The part of a linear layer, or of fused layers, that one GPU computes."""

    inputs: int
    outputs: int
    float16: bool
    """True if activations are float16, False for bfloat16."""


@dataclass(frozen=True, slots=True)
class Kernel:
    """One kernel of vLLM and what it computes."""

    name: str
    types: frozenset[tuple[int, bool]]
    """Bits, and True for symmetric grids."""
    least_capability: int | None
    """Compute capability from which it runs; None for CPUs."""
    most_capability: int = 1000
    groups: frozenset[int] | None = None
    """Group sizes; None for any."""
    takes_rows: bool = True
    """True if a group may be a whole row."""
    inputs_multiple: int = 1
    outputs_multiple: int = 1
    whole_groups: bool = False
    """True if a part must hold whole groups of inputs."""
    float16_only: bool = False

    def runs_on(self, server: VllmServer) -> bool:
        """Return True if the kernel is for the processor."""
        capability = server.capability
        if capability is None or self.least_capability is None:
            return capability is None and self.least_capability is None
        return self.least_capability <= capability <= self.most_capability

    def problem(self, grid: WeightGrid, part: Partition) -> str | None:
        """Return why the kernel does not compute a part on a grid; None if it does."""
        is_row = grid.group_size == -1
        if (grid.bits, grid.symmetric) not in self.types:
            return f"no {describe(grid, with_groups=False)}"
        if (is_row and not self.takes_rows) or not (
            is_row or self.groups is None or grid.group_size in self.groups
        ):
            return f"no {describe_groups(grid)}"
        if self.float16_only and not part.float16:
            return "float16 only"
        for count, multiple, what in (
            (part.inputs, self.inputs_multiple, "inputs"),
            (part.outputs, self.outputs_multiple, "outputs"),
        ):
            if count % multiple:
                return f"{count} {what} are no multiple of {multiple}"
        if self.whole_groups and not is_row and part.inputs % grid.group_size:
            return f"{part.inputs} inputs are no whole groups"
        return None


KERNELS: tuple[Kernel, ...] = (
    Kernel(
        "Machete",
        _FOUR_BITS | {(8, True), (8, False)},
        90,
        90,
        groups=frozenset({64, 128}),
        inputs_multiple=64,
        outputs_multiple=128,
    ),
    Kernel(
        "Marlin",
        _FOUR_BITS | {(8, True)},
        75,
        groups=frozenset({32, 64, 128}),
        whole_groups=True,
    ),
    Kernel(
        "Exllama",
        frozenset({(4, True)}),
        60,
        takes_rows=False,
        float16_only=True,
        outputs_multiple=8,
    ),
    Kernel(
        "Exllama",
        frozenset({(8, True)}),
        60,
        takes_rows=False,
        float16_only=True,
        outputs_multiple=4,
    ),
    Kernel(
        "TritonW4A16",
        _FOUR_BITS,
        0,
        groups=frozenset({32, 64, 128, 256}),
        outputs_multiple=8,
        whole_groups=True,
    ),
    Kernel("CPUWNA16", _FOUR_BITS, None, inputs_multiple=32, outputs_multiple=32),
)
"""In vLLM's order of preference."""


@dataclass(frozen=True, slots=True)
class KernelChoice:
    """The kernel that vLLM takes for a layer, or why it has none."""

    kernel: str | None
    reason: str | None = None


def choose_kernel(server: VllmServer, grid: WeightGrid, part: Partition) -> KernelChoice:
    """Return the first kernel that computes a part of a layer on a grid."""
    reasons: list[str] = []
    for kernel in KERNELS:
        if not kernel.runs_on(server):
            continue
        if (problem := kernel.problem(grid, part)) is None:
            return KernelChoice(kernel.name)
        reasons.append(f"{kernel.name}: {problem}")
    what = f"no kernel on {server.gpu} for {describe(grid)}"
    return KernelChoice(None, f"{what} ({'; '.join(dict.fromkeys(reasons))})")


def describe_groups(grid: WeightGrid) -> str:
    """Return the groups of a grid in words."""
    return "whole rows" if grid.group_size == -1 else f"groups of {grid.group_size}"


def describe(grid: WeightGrid, *, with_groups: bool = True) -> str:
    """Return a grid in words, such as ``8 bits, symmetric, groups of 64``."""
    kind = "symmetric" if grid.symmetric else "asymmetric"
    text = f"{grid.bits} bits, {kind}"
    return f"{text}, {describe_groups(grid)}" if with_groups else text
