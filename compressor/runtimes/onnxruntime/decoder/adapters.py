"""Adapters of an open decoder: loaded once, and bound as inputs of the rows that use them.

ONNX Runtime ignores an active adapter (``RunOptions.add_active_adapter``) in calls with I/O binding
without an error, so the factors are bound as what they are: inputs of the graph.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from onnx import TensorProto

from compressor.artifacts.errors_from_os import writing
from compressor.errors import ModelError, UsageError
from compressor.graphs.decoder.adapter_slots import (
    SLOTS_KEY,
    AdapterSlot,
    slot_inputs,
    slots_from_json,
)
from compressor.graphs.files import read_graph
from compressor.models.adapters.base import BASE_KEY, check_exported
from compressor.models.adapters.factors import missing_modules, read_factors
from compressor.runtimes.onnxruntime.decoder.binding import BoundSession

Array = np.ndarray[Any, Any]
_LISTED = 4
"""Modules that a message lists."""
_DTYPES: Mapping[str | int, Any] = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    TensorProto.FLOAT: np.float32,
    TensorProto.FLOAT16: np.float16,
}
"""Type of a slot's inputs, as ONNX Runtime and as ONNX names it."""


class LoadedAdapters:
    """Inputs of the slots of a graph for several adapters, by the adapter's name."""

    def __init__(
        self, folder: Path, session: onnxruntime.InferenceSession, adapters: Mapping[str, Path]
    ) -> None:
        """Read the adapters, and check that they belong to the graph.

        Args:
            folder: the decoder's folder.
            session: its graph.
            adapters: name to folder in PEFT's layout with ``base.json``.

        Raises:
            UsageError: the graph has no slots.
            ModelError: an adapter is damaged, was trained on another model, is no LoRA, or does
                not fit the slots.
        """
        metadata = session.get_modelmeta().custom_metadata_map
        self._inputs: dict[str | None, dict[str, Array]] = {}
        if adapters:
            slots = _slots(folder, metadata)
            types = {value.name: value.type for value in session.get_overridable_initializers()}
            dtype = _dtype_of(slots, types, folder)
            self._inputs[None] = slot_inputs(slots, {}, dtype, folder)
            for name, adapter in adapters.items():
                _check_base(adapter, metadata[BASE_KEY], folder)
                self._inputs[name] = _read_inputs(slots, adapter, dtype)
        self._bound: dict[int, str | None] = {}

    def check(self, name: str | None) -> None:
        """Check that an adapter has been loaded.

        Raises:
            UsageError: it has not.
        """
        if name is not None and name not in self._inputs:
            known = ", ".join(str(key) for key in self._inputs if key is not None)
            raise UsageError(f"there is no adapter {name!r}", remedy=f"loaded are: {known or '–'}")

    def bind(self, session: BoundSession, name: str | None) -> None:
        """Bind the inputs of an adapter, or of none; nothing is done if they are bound already."""
        if self._bound.get(id(session)) == name:
            return
        session.bind_inputs(self._inputs[name])
        self._bound[id(session)] = name


def write_onnx_adapter(folder: Path, adapter: Path, target: Path) -> int:
    """Write an adapter as ONNX Runtime's ``.onnx_adapter`` file for one graph with slots.

    ONNX Runtime and onnxruntime-genai load it. The file has neither a checksum nor a reference to
    its graph: a flipped byte loads, and so does the adapter of another model with equal shapes.

    Args:
        folder: the decoder's folder.
        adapter: folder in PEFT's layout with ``base.json``.
        target: the file to write.

    Returns:
        Its size in bytes.

    Raises:
        UsageError: the graph has no slots.
        ModelError: as for ``LoadedAdapters``.
        StorageError: the file cannot be written.
    """
    graph = read_graph(folder)
    metadata = {entry.key: entry.value for entry in graph.metadata_props}
    slots = _slots(folder, metadata)
    _check_base(adapter, metadata[BASE_KEY], folder)
    types = {value.name: value.type.tensor_type.elem_type for value in graph.graph.input}
    dtype = _dtype_of(slots, types, folder)
    inputs = _read_inputs(slots, adapter, dtype)
    values = {
        name: onnxruntime.OrtValue.ortvalue_from_numpy(array)
        for name, array in inputs.items()
        if array.size  # slots without a factor keep their default
    }
    written = onnxruntime.AdapterFormat()
    written.set_parameters(values)
    with writing(target):
        written.export_adapter(str(target))
        return target.stat().st_size


def _slots(folder: Path, metadata: Mapping[str, str]) -> tuple[AdapterSlot, ...]:
    if SLOTS_KEY not in metadata or BASE_KEY not in metadata:
        raise UsageError(
            f"{folder} takes no adapters: its graph has no slots for them",
            remedy="export its parent with `decoder: {adapter_slots: [q_proj, v_proj]}`",
        )
    return slots_from_json(metadata[SLOTS_KEY], folder)


def _dtype_of(slots: Sequence[AdapterSlot], types: Mapping[str, Any], folder: Path) -> Any:
    """Return the dtype of the inputs of slots, from the types of the inputs by name.

    Raises:
        ModelError: the graph lacks an input of a slot.
    """
    names = [name for slot in slots for name in slot.names]
    missing = [name for name in names if name not in types]
    if missing or not names:
        raise ModelError(
            f"{folder}: its graph lacks the inputs of adapter slots that its metadata names: "
            f"{', '.join(missing[:_LISTED]) or 'none is named'}",
            remedy="name the folder that `export-onnx` wrote",
        )
    return _DTYPES[types[names[0]]]


def _read_inputs(slots: Sequence[AdapterSlot], adapter: Path, dtype: Any) -> dict[str, Array]:
    """Return the inputs of all slots for an adapter whose base has been compared.

    Raises:
        ModelError: the adapter is damaged, no LoRA, or does not fit the slots.
    """
    factors = read_factors(adapter)
    inputs = slot_inputs(slots, factors, dtype, adapter)
    modules = [module for slot in slots for module in slot.modules]
    if missing := missing_modules(adapter, modules, factors):
        names = ", ".join(missing[:_LISTED]) + (", …" if missing[_LISTED:] else "")
        raise ModelError(
            f"the adapter {adapter} targets {len(missing)} modules that it has no factors for: "
            f"{names}",
            remedy="copy the adapter again: its weights are not those of its config",
        )
    return inputs


def _check_base(adapter: Path, digest: str, folder: Path) -> None:
    check_exported(
        adapter,
        digest,
        folder,
        remedy="export the model that the adapter was trained on, with `adapter_slots`",
    )
