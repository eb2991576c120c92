"""Calibration samples, and the activations that are stored while they pass through the layers."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from calibration.samples import Samples
from compressor.artifacts.errors_from_os import reading, writing
from compressor.artifacts.files import write_atomic
from compressor.engine.contract import PassContext
from compressor.models.quantized.weight_grid import WeightGrid
from passes.awq.config import AwqConfig

CAPTURED_BYTES = 16 << 20
"""Activations of the float layers that are kept in memory; the others are written to disk."""
_STATE = "state.json"

_NO_GRIDS: Mapping[str, WeightGrid] = MappingProxyType({})
_NO_EXCEPTIONS: Mapping[str, Mapping[str, str]] = MappingProxyType({})
Branch = Literal["rounded", "exact"]
"""Hidden states after the quantized layers, or after the float layers."""


def load_samples(config: AwqConfig, context: PassContext) -> Samples:
    """Return the calibration samples."""
    calibration = config.calibration
    return Samples(
        context.data(calibration.data),
        count=calibration.num_samples,
        batch_size=calibration.batch_size,
        seed=calibration.seed,
    )


class HiddenStates:
    """Hidden states before a decoder layer, on disk, so that a killed run can resume.

    Those of a layer are removed once those of the next are complete.
    """

    def __init__(self, work: Path, identity: str) -> None:
        """Use the folder ``work``; states of another artifact than ``identity`` are ignored."""
        self.work, self.identity = work, identity

    def layers_done(self) -> int:
        """Return the number of layers that are complete; 0 if this run has not started."""
        return int(self._state().get("layers", 0))

    def reports(self) -> list[dict[str, object]]:
        """Return the report rows of the layers that are complete."""
        return list(self._state().get("reports", []))

    def packed(self) -> dict[str, WeightGrid]:
        """Return the grids of the packed linear layers by their names, in the order of packing."""
        grids = self._state().get("grids", {})
        return {name: WeightGrid.model_validate(grid) for name, grid in grids.items()}

    def exceptions(self) -> dict[str, dict[str, str]]:
        """Return what differs from the config: linear layers by kind, with reasons."""
        return {"kept_float": {}, **self._state().get("exceptions", {})}

    def _state(self) -> dict[str, Any]:
        """Return the state of this run; empty if there is none, or that of another artifact."""
        file = self.work / _STATE
        if not file.is_file():
            return {}
        with reading(file):
            state: dict[str, Any] = json.loads(file.read_bytes())
        return state if state["identity"] == self.identity else {}

    def write(self, layer: int, batch: int, rounded: Tensor, exact: Tensor | None) -> None:
        """Write the input of ``layer`` behind quantized layers and, unless None, float layers."""
        branches: dict[Branch, Tensor | None] = {"rounded": rounded, "exact": exact}
        for branch, hidden in branches.items():
            if hidden is not None:
                file = self._file(layer, batch, branch)
                with writing(file):
                    file.parent.mkdir(parents=True, exist_ok=True)
                    safetensors.torch.save_file({branch: hidden.contiguous()}, file)

    def read(self, layer: int, batch: int, branch: Branch = "rounded") -> Tensor:
        """Return what ``write`` wrote."""
        return safetensors.torch.load(self._file(layer, batch, branch).read_bytes())[branch]

    def _file(self, layer: int, batch: int, branch: Branch) -> Path:
        return self.work / f"hidden-{layer}" / f"{branch}-{batch}.safetensors"

    def finish(
        self,
        layer: int,
        rows: Sequence[Mapping[str, object]] = (),
        grids: Mapping[str, WeightGrid] = _NO_GRIDS,
        exceptions: Mapping[str, Mapping[str, str]] = _NO_EXCEPTIONS,
    ) -> None:
        """Record that the inputs of ``layer`` are complete, with the results of the one before.

        Args:
            layer: number of the layer.
            rows: report rows.
            grids: grids of the packed linear layers.
            exceptions: see ``exceptions``.
        """
        before = self.exceptions()
        state = {
            "identity": self.identity,
            "layers": layer,
            "reports": [*self.reports(), *rows],
            "grids": {name: grid.model_dump() for name, grid in {**self.packed(), **grids}.items()},
            "exceptions": {
                kind: {**before.get(kind, {}), **exceptions.get(kind, {})}
                for kind in dict.fromkeys([*before, *exceptions])
            },
        }
        write_atomic(self.work / _STATE, json.dumps(state).encode())
        shutil.rmtree(self.work / f"hidden-{layer - 1}", ignore_errors=True)


class Captures:
    """Tensors by key, in memory up to a limit and otherwise in files; lost with the process."""

    def __init__(self, folder: Path, limit_bytes: int) -> None:
        self.folder, self.free_bytes = folder, limit_bytes
        self.in_memory: dict[str, Tensor] = {}
        self._in_files: dict[str, tuple[torch.Size, Any]] = {}
        """Shapes and dtypes of the tensors in files."""
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)

    def put(self, key: str, value: Tensor) -> None:
        """Store a tensor."""
        size = value.numel() * value.element_size()
        if size <= self.free_bytes:
            self.free_bytes -= size
            self.in_memory[key] = value.clone()
        else:
            array = value.contiguous().numpy()
            with writing(self.folder):
                array.tofile(self.folder / key)
            self._in_files[key] = value.shape, array.dtype

    def get(self, key: str) -> Tensor:
        """Return a stored tensor."""
        if key in self.in_memory:
            return self.in_memory[key]
        shape, dtype = self._in_files[key]
        return torch.from_numpy(np.fromfile(self.folder / key, dtype=dtype)).view(shape)

    def drop(self, key: str) -> None:
        """Remove a stored tensor."""
        if key in self.in_memory:
            value = self.in_memory.pop(key)
            self.free_bytes += value.numel() * value.element_size()
        else:
            (self.folder / key).unlink()

    def close(self) -> None:
        """Remove all stored tensors."""
        self.in_memory.clear()
        shutil.rmtree(self.folder, ignore_errors=True)


def flatten_positions(value: Tensor) -> Tensor:
    """Return [B, T, C] as [B·T, C]."""
    return value.reshape(-1, value.shape[-1])
