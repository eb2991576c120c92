"""Adapters of an open decoder: loaded once, and bound as inputs of the rows that use them.

ONNX Runtime ignores an active adapter (``RunOptions.add_active_adapter``) in calls with I/O binding
without an error, so the factors are bound as what they are: inputs of the graph.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from onnx import TensorProto

from compressor.artifacts.errors_from_os import writing
from compressor.errors import ModelError, UsageError
from compressor.graphs.decoder.adapter_slots import (
    BASE_KEY,
    SLOTS_KEY,
    AdapterSlot,
    slot_inputs,
    slots_from_json,
)
from compressor.graphs.files import read_graph
from compressor.models.adapters.base import read_base
from compressor.models.adapters.factors import read_factors
from compressor.runtimes.onnxruntime.decoder.binding import BoundSession

Array = np.ndarray[Any, Any]
_DTYPES: Mapping[str, Any] = {"tensor(float)": np.float32, "tensor(float16)": np.float16}


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
        slots = _slots(folder, metadata, required=bool(adapters))
        types = {value.name: value.type for value in session.get_overridable_initializers()}
        self._inputs: dict[str | None, dict[str, Array]] = {}
        if slots:
            dtype = _DTYPES[types[slots[0].names[0]]]
            self._inputs[None] = slot_inputs(slots, {}, dtype, folder)
            for name, adapter in adapters.items():
                _check_base(adapter, metadata[BASE_KEY], folder)
                self._inputs[name] = slot_inputs(slots, read_factors(adapter), dtype, adapter)
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
    slots = _slots(folder, metadata, required=True)
    _check_base(adapter, metadata[BASE_KEY], folder)
    [kind] = {
        value.type.tensor_type.elem_type
        for value in graph.graph.input
        if value.name == slots[0].names[0]
    }
    dtype = np.float16 if kind == TensorProto.FLOAT16 else np.float32
    inputs = slot_inputs(slots, read_factors(adapter), dtype, adapter)
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


def _slots(folder: Path, metadata: Mapping[str, str], *, required: bool) -> tuple[AdapterSlot, ...]:
    if SLOTS_KEY in metadata:
        return slots_from_json(metadata[SLOTS_KEY], folder)
    if required:
        raise UsageError(
            f"{folder} takes no adapters: its graph has no slots for them",
            remedy="export its parent with `decoder: {adapter_slots: [q_proj, v_proj]}`",
        )
    return ()


def _check_base(adapter: Path, digest: str, folder: Path) -> None:
    base = read_base(adapter)
    if base.digest != digest:
        raise ModelError(
            f"the adapter {adapter} was trained on {base.name} ({base.digest[:12]}…), and {folder} "
            f"was exported from another model ({digest[:12]}…)",
            remedy="export the model that the adapter was trained on, with `adapter_slots`",
        )
