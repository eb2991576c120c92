"""What calibration holds between layers: hidden states on disk, so that a killed run goes on, and some captures in memory."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from calibration.samples import Samples
from compressor.artifacts.errors_from_os import writing
from compressor.artifacts.files import write_atomic
from compressor.engine.contract import PassContext
from compressor.errors import DataError
from passes.awq.step import AwqConfig

_STATE = "state.json"
CAPTURED_BYTES = 16 << 20
"""Of the float layers' activations in memory; the others go to disk."""


def samples_of(config: AwqConfig, context: PassContext) -> Samples:
    """Those that calibrate.

    Raises:
        DataError: the set has fewer than are asked for.
    """
    asked = config.calibration
    found = Samples(
        context.data(asked.data),
        count=asked.num_samples,
        batch_size=asked.batch_size,
        seed=asked.seed,
    )
    if len(found) < asked.num_samples:
        raise DataError(
            f"the set {asked.data!r} has {len(found)} samples, and `num_samples` asks for {asked.num_samples}",
            remedy="ask for fewer, or name a larger set",
        )
    return found


class Hidden:
    """The hidden states before a layer, batch by batch; those of the layer before go once the next are whole."""

    def __init__(self, work: Path, identity: str) -> None:
        self.work, self.identity = work, identity

    def done(self) -> int:
        """How many layers are behind; 0 where nothing of this run is there."""
        try:
            state = json.loads((self.work / _STATE).read_bytes())
        except (OSError, ValueError):
            return 0
        return int(state["layers"]) if state["identity"] == self.identity else 0

    def start(self, batches: Iterable[Tensor], *, exact: bool) -> None:
        """The float model's hidden states before the first layer."""
        for number, hidden in enumerate(batches):
            self.write(0, number, hidden, hidden if exact else None)
        self.finish(0)

    def write(self, layer: int, batch: int, rounded: Tensor, exact: Tensor | None) -> None:
        """What enters ``layer``: from the rounded layers before it, and from the float ones, where that is asked for."""
        for what, hidden in (("rounded", rounded), ("exact", exact)):
            if hidden is not None:
                file = self._file(layer, batch, what)
                with writing(file):
                    file.parent.mkdir(parents=True, exist_ok=True)
                    safetensors.torch.save_file({what: hidden.contiguous()}, file)

    def read(self, layer: int, batch: int, what: Literal["rounded", "exact"] = "rounded") -> Tensor:
        """What ``write`` was given."""
        return safetensors.torch.load(self._file(layer, batch, what).read_bytes())[what]

    def _file(self, layer: int, batch: int, what: str) -> Path:
        return self.work / f"hidden-{layer}" / f"{what}-{batch}.safetensors"

    def finish(self, layer: int, rows: Sequence[Mapping[str, object]] = ()) -> None:
        """All that enters ``layer`` is written, and so is what came of the one before it: ``rows`` are kept of it."""
        reports = [*self.reports(), *rows]
        state = {"identity": self.identity, "layers": layer, "reports": reports}
        write_atomic(self.work / _STATE, json.dumps(state).encode())
        shutil.rmtree(self.work / f"hidden-{layer - 1}", ignore_errors=True)

    def reports(self) -> list[dict[str, object]]:
        """What was kept of the layers that are done."""
        try:
            state = json.loads((self.work / _STATE).read_bytes())
        except (OSError, ValueError):
            return []
        found: list[dict[str, object]] = (
            state["reports"] if state["identity"] == self.identity else []
        )
        return found


class Captures:
    """Tensors by key; in memory up to a limit, the others in files, which nobody reads after this process."""

    def __init__(self, folder: Path, limit_bytes: int) -> None:
        self.folder, self.left = folder, limit_bytes
        self.held: dict[str, Tensor] = {}
        self.shapes: dict[str, torch.Size] = {}
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)

    def put(self, key: str, value: Tensor) -> None:
        """Keep a float32 tensor."""
        size = value.numel() * value.element_size()
        if size <= self.left:
            self.left -= size
            self.held[key] = value.clone()
        else:
            with writing(self.folder):
                value.contiguous().numpy().tofile(self.folder / key)
            self.shapes[key] = value.shape

    def get(self, key: str) -> Tensor:
        """What was put."""
        if key in self.held:
            return self.held[key]
        return torch.from_numpy(np.fromfile(self.folder / key, dtype=np.float32)).view(
            self.shapes[key]
        )

    def drop(self, key: str) -> None:
        """Forget one."""
        if key in self.held:
            value = self.held.pop(key)
            self.left += value.numel() * value.element_size()
        else:
            (self.folder / key).unlink()

    def close(self) -> None:
        """Forget all."""
        self.held.clear()
        shutil.rmtree(self.folder, ignore_errors=True)


def flat(value: Tensor) -> Tensor:
    """[B, T, C] as [tokens, C]."""
    return value.reshape(-1, value.shape[-1])


def chunks(count: int, size: int) -> Iterator[slice]:
    """Stretches of at most ``size``."""
    yield from (slice(start, min(start + size, count)) for start in range(0, count, size))
