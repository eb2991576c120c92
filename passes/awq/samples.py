"""What calibration holds between layers: hidden states on disk, so that a killed run goes on, and some captures in memory."""

from __future__ import annotations

import contextlib
import ctypes
import json
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

import safetensors.torch
from torch import Tensor

from compressor.artifacts.files import write_atomic

_STATE = "state.json"


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

    def start(self, batches: Iterable[Tensor]) -> None:
        """The float model's hidden states before the first layer."""
        for number, hidden in enumerate(batches):
            self.write(0, number, hidden, hidden)
        self.finish(0)

    def write(self, layer: int, batch: int, rounded: Tensor, exact: Tensor) -> None:
        """What enters ``layer``: from the rounded layers before it, and from the float ones."""
        folder = self.work / f"hidden-{layer}"
        folder.mkdir(parents=True, exist_ok=True)
        both = {"rounded": rounded.contiguous(), "exact": exact.clone().contiguous()}
        safetensors.torch.save_file(both, folder / f"{batch}.safetensors")

    def read(self, layer: int, batch: int) -> tuple[Tensor, Tensor]:
        """What ``write`` was given."""
        found = safetensors.torch.load((self.work / f"hidden-{layer}" / f"{batch}.safetensors").read_bytes())
        return found["rounded"], found["exact"]

    def finish(self, layer: int, what: dict[str, object] | None = None) -> None:
        """All that enters ``layer`` is written, and so is what came of the one before it: ``what`` is kept of it."""
        reports = [*self.reports(), *([what] if what is not None else [])]
        state = {"identity": self.identity, "layers": layer, "reports": reports}
        write_atomic(self.work / _STATE, json.dumps(state).encode())
        shutil.rmtree(self.work / f"hidden-{layer - 1}", ignore_errors=True)

    def reports(self) -> list[dict[str, object]]:
        """What was kept of each layer that is done."""
        try:
            state = json.loads((self.work / _STATE).read_bytes())
        except (OSError, ValueError):
            return []
        found: list[dict[str, object]] = state["reports"] if state["identity"] == self.identity else []
        return found


class Captures:
    """Tensors by key; in memory up to a limit, the others in files."""

    def __init__(self, folder: Path, limit_bytes: int) -> None:
        self.folder, self.left = folder, limit_bytes
        self.held: dict[str, Tensor] = {}
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)

    def put(self, key: str, value: Tensor) -> None:
        """Keep a tensor."""
        size = value.numel() * value.element_size()
        if size <= self.left:
            self.left -= size
            self.held[key] = value.clone()
        else:
            safetensors.torch.save_file({"value": value.contiguous()}, self.folder / f"{key}.safetensors")

    def get(self, key: str) -> Tensor:
        """What was put."""
        if key in self.held:
            return self.held[key]
        return safetensors.torch.load((self.folder / f"{key}.safetensors").read_bytes())["value"]

    def drop(self, key: str) -> None:
        """Forget one."""
        if key in self.held:
            value = self.held.pop(key)
            self.left += value.numel() * value.element_size()
        else:
            (self.folder / f"{key}.safetensors").unlink()

    def close(self) -> None:
        """Forget all."""
        self.held.clear()
        shutil.rmtree(self.folder, ignore_errors=True)


def give_back_memory() -> None:
    """Hand freed memory back to the system, where the C library is glibc: it keeps what lies between blocks in use."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def flat(value: Tensor) -> Tensor:
    """[B, T, C] as [tokens, C]."""
    return value.reshape(-1, value.shape[-1])


def chunks(count: int, size: int) -> Iterator[slice]:
    """Stretches of at most ``size``."""
    yield from (slice(start, min(start + size, count)) for start in range(0, count, size))
