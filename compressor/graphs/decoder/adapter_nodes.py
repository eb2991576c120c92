"""Nodes of the slots for adapters in a decoder's graph."""

from __future__ import annotations

import onnx_ir as ir

from compressor.graphs.decoder.adapter_slots import AdapterSlot, is_target
from compressor.graphs.decoder.operators import Operators


class AdapterNodes:
    """Slots beside the linear layers whose names end in one of the targets."""

    def __init__(self, add: Operators, targets: tuple[str, ...]) -> None:
        """Start without slots.

        Args:
            add: appends nodes to the graph.
            targets: ends of the names of linear layers, or `all-linear`; none for no slots.
        """
        self._add, self._targets = add, targets
        self.slots: list[AdapterSlot] = []
        self.inputs: list[ir.Value] = []
        """Inputs of the slots, whose default has rank 0."""

    def are_targets(self, modules: list[str]) -> bool:
        """Return True if linear layers, given by their full names, get a slot."""
        return any(is_target(module, self._targets) for module in modules)

    def increment(self, x: ir.Value, result: ir.Value, slot: AdapterSlot) -> ir.Value:
        """Return result + (x · A) · B.

        Args:
            x: the input of the slot's layers, [..., I].
            result: their outputs side by side, [..., O].
            slot: the slot, which is added to the graph.
        """
        add = self._add
        factors = [
            add.constant(name, default)
            for name, default in zip(slot.names, slot.empty(add.dtype.numpy()), strict=True)
        ]
        rank = f"{slot.name}.rank"
        factors[0].shape = ir.Shape((slot.inputs, rank))
        factors[1].shape = ir.Shape((rank, sum(slot.widths)))
        self.inputs += factors
        self.slots.append(slot)
        inner = add.op("MatMul", [x, factors[0]], f"{slot.name}.lora_inner")
        increment = add.op("MatMul", [inner, factors[1]], f"{slot.name}.lora_increment")
        return add.op("Add", [result, increment], f"{slot.name}.adapted")
