"""Slots of a decoder's graph: inputs for the factors of a LoRA adapter beside its linear layers.

A slot belongs to linear layers that are one product in the graph. Its factors are inputs with an
initializer of rank 0, which adds nothing: without an adapter the graph computes what it computes
without slots, bit for bit, and the weights are never touched.

Shapes: I inputs and O outputs of a product, R ranks of all its layers.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from compressor.errors import ModelError
from compressor.graphs.decoder.row_blocks import RowBlocks
from compressor.models.adapters.factors import Factors

Array = np.ndarray[Any, Any]
SLOTS_KEY = "autoglm_compress.adapter_slots"
"""Metadata key of a decoder for its slots, as JSON."""
ALL_LINEAR = "all-linear"
_LISTED = 8
"""Names that a message lists."""


@dataclass(frozen=True, slots=True)
class AdapterSlot:
    """One slot."""

    name: str
    """Prefix of its inputs, ``<name>.lora_A`` [I, R] and ``<name>.lora_B`` [R, O]."""
    modules: tuple[str, ...]
    """Paths of the linear layers in the class of transformers, in the order of their outputs."""
    widths: tuple[int, ...]
    """Outputs of each of them."""
    inputs: int
    order: RowBlocks | None = None
    """Order of the outputs; None for that of the checkpoint."""

    @property
    def names(self) -> tuple[str, str]:
        """Names of the two inputs."""
        return f"{self.name}.lora_A", f"{self.name}.lora_B"

    def empty(self, dtype: Any = np.float32) -> tuple[Array, Array]:
        """Return factors of rank 0: [I, 0] and [0, O]."""
        return np.zeros((self.inputs, 0), dtype), np.zeros((0, sum(self.widths)), dtype)


def is_target(module: str, targets: Iterable[str]) -> bool:
    """Return True if a module is among target modules, given by the ends of their names."""
    return any(
        target == ALL_LINEAR or module == target or module.endswith(f".{target}")
        for target in targets
    )


def slots_as_json(slots: Sequence[AdapterSlot]) -> str:
    """Return the text for ``SLOTS_KEY``."""
    return json.dumps([asdict(slot) for slot in slots], separators=(",", ":"))


def slots_from_json(text: str, folder: Path) -> tuple[AdapterSlot, ...]:
    """Return the slots of a graph from its metadata.

    Raises:
        ModelError: the text is damaged.
    """
    try:
        return tuple(
            AdapterSlot(
                str(entry["name"]),
                tuple(map(str, entry["modules"])),
                tuple(map(int, entry["widths"])),
                int(entry["inputs"]),
                _order(entry),
            )
            for entry in json.loads(text)
        )
    except (ValueError, KeyError, TypeError) as error:
        raise ModelError(
            f"{folder}: {SLOTS_KEY} of its metadata is damaged", remedy="export the model again"
        ) from error


def _order(entry: Mapping[str, Any]) -> RowBlocks | None:
    """Return the order of a slot's outputs; earlier versions name heads that are stored in turn."""
    if (heads := entry.get("heads")) is not None:
        count, key_heads, width = map(int, heads)
        return RowBlocks.by_key_head(count, key_heads, width)
    order = entry.get("order")
    return (
        None if order is None else RowBlocks(int(order["width"]), tuple(map(int, order["blocks"])))
    )


def slot_inputs(
    slots: Sequence[AdapterSlot], factors: Mapping[str, Factors], dtype: Any, adapter: Path
) -> dict[str, Array]:
    """Return the inputs of all slots for an adapter; slots that it leaves out have rank 0.

    Args:
        slots: of the graph.
        factors: of the adapter, by module.
        dtype: of the inputs.
        adapter: for messages.

    Raises:
        ModelError: the adapter has modules without a slot, or of other sizes; or values beyond
            the range of ``dtype``.
    """
    if problems := _misfits(slots, factors):
        more = f"\n    and {len(problems) - _LISTED} more" if problems[_LISTED:] else ""
        raise ModelError(
            f"the adapter {adapter} does not fit the slots of the graph:\n"
            + "\n".join(f"    {problem}" for problem in problems[:_LISTED])
            + more,
            remedy="export the base with `decoder: {adapter_slots: […]}` for these modules",
        )
    with np.errstate(over="ignore"):
        inputs = {
            name: np.ascontiguousarray(array.astype(dtype))
            for slot in slots
            for name, array in zip(slot.names, _fused(slot, factors), strict=True)
        }
    if infinite := [name for name, array in inputs.items() if not np.isfinite(array).all()]:
        raise ModelError(
            f"the adapter {adapter} exceeds the range of {np.dtype(dtype)} in {infinite[0]}",
            remedy="export the base with `dtype: float32`",
        )
    return inputs


def _misfits(slots: Sequence[AdapterSlot], factors: Mapping[str, Factors]) -> list[str]:
    """Return a line for each module of an adapter without a slot, or of other sizes."""
    sizes = {
        module: (slot.inputs, width)
        for slot in slots
        for module, width in zip(slot.modules, slot.widths, strict=True)
    }
    problems = [f"{name}: the graph has no slot for it" for name in factors if name not in sizes]
    for name, factor in factors.items():
        actual = factor.a_IR.shape[0], factor.b_RO.shape[1]
        expected = sizes.get(name, actual)
        if actual != expected:
            problems.append(
                f"{name} maps {actual[0]} values to {actual[1]}, and the layer of the graph "
                f"{expected[0]} to {expected[1]}"
            )
    return problems


def _fused(slot: AdapterSlot, factors: Mapping[str, Factors]) -> tuple[Array, Array]:
    """Return A side by side, and B as blocks on a diagonal: zeros where nothing applies."""
    columns_a, rows_b, start = [], [], 0
    outputs = sum(slot.widths)
    for module, width in zip(slot.modules, slot.widths, strict=True):
        if module in factors:
            factor = factors[module]
            block_RO = np.zeros((factor.b_RO.shape[0], outputs), np.float32)
            block_RO[:, start : start + width] = factor.b_RO
            columns_a.append(factor.a_IR)
            rows_b.append(block_RO)
        start += width
    if not columns_a:
        return slot.empty()
    a_IR, b_RO = np.concatenate(columns_a, axis=1), np.concatenate(rows_b)
    return (a_IR, b_RO) if slot.order is None else (a_IR, b_RO[:, slot.order.rows])
