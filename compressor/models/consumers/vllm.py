"""Rules by which vLLM 0.32 loads packed checkpoints, as arithmetic on shapes; no torch.

Read from its model loader, ``linear.py``, ``auto_awq.py``, ``auto_gptq.py`` and
``compressed_tensors_wNa16.py``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from compressor.models.consumers.findings import Checked, Finding, StoredLinear, Verdict
from compressor.models.consumers.kernels import (
    KERNELS,
    VLLM_VERSION,
    KernelChoice,
    Partition,
    choose_kernel,
)
from compressor.models.consumers.model_shape import Heads, ModelShape, model_shape
from compressor.models.consumers.roles import (
    GATE_UP,
    QKV,
    Split,
    fused_name,
    is_expert,
    is_in_tower,
    split_of,
)
from compressor.models.consumers.targets import VllmServer
from compressor.models.consumers.vllm_names import lookup_problem
from compressor.models.quantized.weight_grid import QUANTIZATION_CONFIG, WeightBits, WeightGrid

_VOCABULARY_MULTIPLE = 64
"""vLLM pads the outputs of a head to it."""
_GROUP_SIZES = (128, 64, 32, -1)
"""Groups that the nearest grid is chosen from."""
_MARLIN_GROUPS = next(kernel.groups for kernel in KERNELS if kernel.name == "Marlin")


@dataclass(frozen=True, slots=True)
class _Unit:
    """Linear layers that vLLM computes as one, and what it knows of the model around them."""

    name: str
    members: tuple[StoredLinear, ...]
    method: str
    """``quant_method`` of config.json."""
    server: VllmServer
    shape: ModelShape

    @property
    def tp(self) -> int:
        """Number of GPUs that share the layer."""
        is_whole = is_in_tower(self.name) and self.server.mm_encoder_tp_mode == "data"
        return 1 if is_whole else self.server.tp

    @property
    def heads(self) -> Heads | None:
        """Attention heads of the decoder or of the tower."""
        return self.shape.tower if is_in_tower(self.name) else self.shape.decoder

    def on(self, grid: WeightGrid) -> _Unit:
        """Return the unit with all its layers on one grid."""
        members = tuple(replace(member, grid=grid) for member in self.members)
        return replace(self, members=members)


def check_vllm(
    layers: Sequence[StoredLinear], tree: Mapping[str, Any], method: str, server: VllmServer
) -> Checked:
    """Return what vLLM does with each packed layer of a checkpoint.

    Args:
        layers: all linear layers of the checkpoint, float ones included.
        tree: config.json.
        method: ``quant_method`` of the packed layers.
        server: GPUs and their number.
    """
    shape = model_shape(tree)
    units: dict[str, list[StoredLinear]] = {}
    for layer in layers:
        units.setdefault(fused_name(layer.name), []).append(layer)
    findings = [
        finding
        for name, members in units.items()
        for finding in _check_unit(_Unit(name, tuple(members), method, server, shape))
    ]
    lost = _lost_layers(layers, tree, method)
    findings = [
        replace(finding, verdict=Verdict.REFUSED, kernel=None, reason=reason, nearest=None)
        if (reason := lost.get(finding.layer.name))
        else finding
        for finding in findings
    ]
    floats = {layer.name for layer in layers if layer.grid is None}
    misread = sorted(name for name in lost if name in floats)
    tp = f", {server.tp} GPUs" if server.tp > 1 else ""
    return Checked(
        f"vLLM {VLLM_VERSION} on {server.gpu}{tp}",
        (
            *_head_problems(shape, server),
            *(f"{name} is float: {lost[name]}" for name in misread[:1]),
        ),
        tuple(_notes(findings, server)),
        findings,
    )


def _lost_layers(
    layers: Sequence[StoredLinear], tree: Mapping[str, Any], method: str
) -> dict[str, str]:
    """Return the layers that vLLM looks up by another name, with the reason."""
    if QUANTIZATION_CONFIG not in tree:  # of a planned model: both names are written
        return {}
    problems = {
        layer.name: lookup_problem(layer.name, tree, method, is_packed=layer.grid is not None)
        for layer in layers
    }
    return {name: problem for name, problem in problems.items() if problem is not None}


def _head_problems(shape: ModelShape, server: VllmServer) -> Iterator[str]:
    """Yield attention heads that do not divide over the GPUs."""
    tower = shape.tower if server.mm_encoder_tp_mode == "weights" else None
    for what, heads in (("", shape.decoder), (" of the vision tower", tower)):
        if heads is None:
            continue
        if heads.count % server.tp:
            fitting = [str(n) for n in range(1, heads.count + 1) if heads.count % n == 0]
            yield (
                f"{heads.count} attention heads{what} do not divide by tp {server.tp}; "
                f"they divide by {', '.join(fitting[:6])}"
            )
        has_fewer_keys = heads.key_count < heads.count
        if has_fewer_keys and heads.key_count % server.tp and server.tp % heads.key_count:
            yield (
                f"{heads.key_count} key heads{what} neither divide by tp {server.tp} nor divide it"
            )


def _notes(findings: Sequence[Finding], server: VllmServer) -> Iterator[str]:
    unknown = sum(finding.verdict is Verdict.UNKNOWN for finding in findings)
    if unknown:
        yield f"{unknown} layers are not known to load: the reasons are listed"
    if server.gpu == "cpu" and any(finding.kernel for finding in findings):
        yield "CPUWNA16 is built for processors with AVX512 only"


def _check_unit(unit: _Unit) -> Iterator[Finding]:
    """Yield a finding for each packed layer of a unit."""
    packed = [member for member in unit.members if member.grid is not None]
    if not packed:
        return
    grids = {member.grid for member in unit.members}
    if is_expert(unit.name):
        reason = "layers of experts have kernels of their own, which these rules do not cover"
        yield from (Finding(member, Verdict.UNKNOWN, reason=reason) for member in packed)
        return
    if len(grids) > 1:
        reason = f"vLLM fuses {_names(unit)} into one layer, which needs one grid"
        nearest = _nearest(unit, packed[0].grid or WeightGrid())
        yield from (Finding(member, Verdict.REFUSED, None, reason, nearest) for member in packed)
        return
    grid = packed[0].grid or WeightGrid()
    choice, verdict = _choose(unit, grid)
    nearest = _nearest(unit, grid) if verdict is Verdict.REFUSED else None
    for member in packed:
        yield Finding(member, verdict, choice.kernel, choice.reason, nearest)


def _names(unit: _Unit) -> str:
    return ", ".join(member.name.rpartition(".")[2] for member in unit.members)


def _choose(unit: _Unit, grid: WeightGrid) -> tuple[KernelChoice, Verdict]:
    """Return the kernel of a unit on a grid; unknown where it depends on an unknown split."""
    split = split_of(unit.members[0].name)
    if split is not Split.UNKNOWN:
        choice = _choose_split(unit, grid, split)
        return choice, Verdict.REFUSED if choice.kernel is None else Verdict.LOADS
    if unit.tp == 1:
        choice = _choose_split(unit, grid, Split.OUTPUTS)
        return choice, Verdict.REFUSED if choice.kernel is None else Verdict.LOADS
    choices = [_choose_split(unit, grid, way) for way in (Split.OUTPUTS, Split.INPUTS)]
    refused = [choice for choice in choices if choice.kernel is None]
    if not refused:
        return choices[0], Verdict.LOADS
    reason = f"its split over GPUs is not known, and not every one loads: {refused[0].reason}"
    return KernelChoice(None, reason), Verdict.UNKNOWN


def _choose_split(unit: _Unit, grid: WeightGrid, split: Split) -> KernelChoice:
    inputs, tp = unit.members[0].inputs, unit.tp
    if split is Split.INPUTS:
        if inputs % tp:
            return KernelChoice(None, f"{inputs} inputs do not divide by tp {tp}")
        part_inputs, outputs = inputs // tp, [member.outputs for member in unit.members]
    else:
        part_inputs = inputs
        parts = list(_output_parts(unit))
        if broken := [count for count, ways in parts if count % ways]:
            return KernelChoice(None, f"{broken[0]} outputs do not divide by tp {tp}")
        outputs = [count // ways for count, ways in parts]
    if problem := _storage_problem(unit, grid, part_inputs, outputs):
        return KernelChoice(None, problem)
    if (
        unit.method == "awq"
        and unit.server.capability is not None
        and grid.group_size not in {-1, *(_MARLIN_GROUPS or ())}
    ):
        return KernelChoice("AWQ")
    part = Partition(part_inputs, sum(outputs), unit.shape.is_float16)
    return choose_kernel(unit.server, grid, part)


def _output_parts(unit: _Unit) -> Iterator[tuple[int, int]]:
    """Yield the outputs of each matrix inside a unit, and the number of parts they are cut into."""
    tp, heads, last = unit.tp, unit.heads, unit.name.rpartition(".")[2]
    key_ways = tp if heads is None else min(tp, heads.key_count)
    if len(unit.members) > 1:
        for member in unit.members:
            is_key = member.name.rpartition(".")[2] in {"k_proj", "v_proj"}
            yield member.outputs, key_ways if is_key else tp
        return
    outputs = unit.members[0].outputs
    if last in QKV and heads is not None and outputs % (heads.count + 2 * heads.key_count) == 0:
        width = outputs // (heads.count + 2 * heads.key_count)
        yield heads.count * width, tp
        yield from [(heads.key_count * width, key_ways)] * 2
    elif last == GATE_UP and outputs % 2 == 0:
        yield from [(outputs // 2, tp)] * 2
    elif last == "lm_head":
        yield -(-outputs // _VOCABULARY_MULTIPLE) * _VOCABULARY_MULTIPLE, tp
    else:
        yield outputs, tp


def _storage_problem(
    unit: _Unit, grid: WeightGrid, inputs: int, outputs: Sequence[int]
) -> str | None:
    """Return why the stored tensors of a layer cannot be cut into these parts."""
    full, tp = unit.members[0].inputs, unit.tp
    if full % grid.width(full):
        return f"{full} inputs are no whole groups of {grid.group_size}"
    if inputs % grid.width(full) and (grid.group_size != -1 or unit.method == "awq"):
        groups = "one row" if grid.group_size == -1 else f"{inputs / grid.group_size:g} groups"
        return f"{full} inputs over {tp} GPUs are {groups} each; it must be whole groups"
    if unit.method != "compressed-tensors":
        broken = [count for count in outputs if count % 8]
        return f"{broken[0]} outputs per GPU are no multiple of 8" if broken else None
    if not grid.symmetric and (broken := [n for n in outputs if n * grid.bits % 32]):
        return f"zero-points of {broken[0]} outputs per GPU fill no whole int32"
    if tp > 1 and inputs * grid.bits % 32:
        return f"{inputs} inputs per GPU fill no whole int32"
    return None


def _nearest(unit: _Unit, grid: WeightGrid) -> WeightGrid | None:
    """Return the grid closest to the given one on which a unit loads.

    The same bits and zero-points with other groups, smaller ones first; then symmetric ones; then
    more bits.
    """
    smaller = [size for size in _GROUP_SIZES if 0 < size <= _width(grid)]
    larger = [size for size in reversed(_GROUP_SIZES) if size > _width(grid)]
    symmetries = [grid.symmetric]
    if unit.method != "awq":
        symmetries.append(not grid.symmetric)
    candidates: tuple[WeightBits, ...] = (4,) if unit.method == "awq" else (grid.bits, 4, 8)
    for count in dict.fromkeys(candidates):
        for symmetric in symmetries:
            for size in (*smaller, *larger, -1):
                near = WeightGrid(bits=count, group_size=size, symmetric=symmetric)
                if _choose(unit.on(near), near)[1] is Verdict.LOADS:
                    return near
    return None


def _width(grid: WeightGrid) -> int:
    return max(_GROUP_SIZES) if grid.group_size == -1 else grid.group_size
