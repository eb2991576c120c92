"""Quantization of vision towers with the search that decoder layers get, part by part."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import nn

from calibration.capture import forward_hooks
from compressor.artifacts.files import write_atomic
from compressor.engine.contract import PassContext
from compressor.errors import NumericalError
from compressor.models.capabilities.linear_groups import Site
from compressor.models.families.transformers.streaming import StreamedCheckpoint
from compressor.models.quantized.weight_grid import WeightGrid
from passes.awq.activations import CAPTURED_BYTES, Branch, Captures
from passes.awq.block import BlockCalibration, BlockQuantizer
from passes.awq.float_reference import FloatReference, RunBatch
from passes.awq.layer_sites import LayerSites
from passes.awq.linear_layers import find_linears
from passes.awq.linear_shapes import FittedGrid
from passes.awq.nearest_layers import find_tower_linears, full_name, tower_file, write_tower_part
from passes.awq.settings import QuantizationSettings
from passes.awq.shards import ShardWriter
from passes.awq.tower_replay import Batches, StoredTrees, TowerReplay

_STATE = "towers.json"


@dataclass(slots=True)
class TowerResult:
    """Result of a search."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    """A report row for each linear layer."""
    kept_float: dict[str, str] = field(default_factory=dict)
    """Linear layers that stay in float, with the reason."""
    parts: dict[str, int] = field(default_factory=dict)
    """Parts that were searched, with their numbers."""


class CountedPositions:
    """Positions of a part's sites: all of all calls."""

    def __init__(self, calls: Sequence[Counter[str]]) -> None:
        """Take, for each batch, the number of calls of each linear layer."""
        self._calls = calls

    def calls(self, site: Site, batch: int) -> int:
        """Return how often the site's linear layers are called."""
        return self._calls[batch][site.linears[0]]

    def valid(self, site: Site, batch: int) -> None:  # noqa: ARG002
        """Return None: all positions count."""
        return


class TowerSearch:
    """Search in the towers of a streamed checkpoint.

    Each part is calibrated with what it receives behind the quantized parts before it.
    """

    def __init__(
        self,
        checkpoint: StreamedCheckpoint,
        grid: WeightGrid,
        grids: Mapping[str, FittedGrid],
        settings: QuantizationSettings,
        writer: ShardWriter,
        context: PassContext,
    ) -> None:
        """Take what all parts share.

        Args:
            checkpoint: the parent.
            grid: grid of the config.
            grids: the grid of each linear layer of the towers that fits.
            settings: methods and dtypes.
            writer: writes shards.
            context: services of the engine.
        """
        self.checkpoint, self.settings = checkpoint, settings
        self.writer, self.context = writer, context
        self.result = TowerResult()
        self._numbers = {part: n for n, part in enumerate(find_tower_linears(checkpoint))}
        by_part = {
            f"{part}.{name}": grids[full_name(part, name)]
            for part, names in find_tower_linears(checkpoint).items()
            for name in names
        }
        self._grid = grid
        self._sites = LayerSites({grid: by_part}, None, context.note)
        self._has_two_branches = settings.error_compensation > 0

    def resume(self) -> bool:
        """Take the result of an earlier run of the same artifact; False if there is none."""
        file = self.context.work / _STATE
        state = json.loads(file.read_bytes()) if file.is_file() else {}
        if state.pop("identity", None) != self.context.artifact_id:
            return False
        self.result = TowerResult(**state)
        return True

    def run(self, batches: Batches, calls: Sequence[Counter[str]]) -> None:
        """Quantize the parts that samples reach, and write their shards.

        Args:
            batches: returns the calibration batches.
            calls: for each batch the number of calls of each part.
        """
        for part, number in self._numbers.items():
            for file in (tower_file(self.writer, number), self._weights_file(part)):
                file.unlink(missing_ok=True)
        replay = TowerReplay(self.checkpoint, batches, calls, self.context.work)
        last = max((n for n, part in enumerate(replay.order) if part in self._numbers), default=-1)
        for number, part in enumerate(replay.order[: last + 1]):
            self._take_part(part, replay, len(calls))
            self.context.progress("vision", number + 1, last + 1, {})
        replay.close()
        state = {"identity": self.context.artifact_id, **asdict(self.result)}
        write_atomic(self.context.work / _STATE, json.dumps(state).encode())

    def replaced(self) -> dict[str, Path]:
        """Return the files with the quantized weights of each part that was searched."""
        return {part: self._weights_file(part) for part in self.result.parts}

    def _weights_file(self, part: str) -> Path:
        return self.context.work / f"tower-{self._numbers[part]:05d}.safetensors"

    def _take_part(self, part: str, replay: TowerReplay, batches: int) -> None:
        """Quantize a part, and store its results for the parts behind it."""
        layer = self.checkpoint.load(part)
        branches: tuple[Branch, ...] = ("rounded",)
        if self._has_two_branches:
            branches = ("exact", "rounded")
        calls = StoredTrees(self.context.work / "tower-calls")
        for branch in branches:
            replay.arguments(part, branch, calls)

        def runs(branch: Branch = "rounded") -> Iterator[tuple[int, RunBatch]]:
            for batch in range(batches):
                keys = [f"{branch} {batch} {n + 1}" for n in range(replay.calls(part, batch))]
                yield batch, partial(_run_calls, layer, calls, keys)

        captures = Captures(self.context.work / "captures", CAPTURED_BYTES)
        reference = FloatReference(captures) if self._has_two_branches else None
        sites: tuple[Site, ...] = ()
        grids: dict[str, WeightGrid] = {}
        if part in self._numbers:
            first = next(batch for batch in range(batches) if replay.calls(part, batch))
            sites, grids = self._find_sites(part, layer, calls, f"rounded {first} 1")
        counts = []
        for batch, run in runs(branches[0]):
            count = Counter[str]()
            counts.append(count)
            with forward_hooks(layer, find_linears(layer), before=partial(_count, count)):
                if reference is None:
                    run()
                else:
                    exact = reference.record(layer, sites, batch, run)
                    replay.put_results(part, "exact", batch, exact)
        calibration = BlockCalibration(runs, CountedPositions(counts), captures, reference)
        quantizer = BlockQuantizer(layer, sites, grids, self.settings, calibration)
        try:
            quantizer.quantize()
        except NumericalError as error:
            raise NumericalError(f"{part}: {error.what}", remedy=error.remedy) from error
        with torch.inference_mode():
            for batch, run in runs():
                replay.put_results(part, "rounded", batch, quantizer.run(batch, run))
        replay.finish(part, branches)
        captures.close()
        calls.close()
        if part in self._numbers:
            self._write(part, quantizer)
        self.checkpoint.unload(part)

    def _find_sites(
        self, part: str, layer: nn.Module, calls: StoredTrees, key: str
    ) -> tuple[tuple[Site, ...], dict[str, WeightGrid]]:
        """Return the sites of a part, and the grid of each by its name.

        Args:
            part: name of the part.
            layer: the part with its float weights.
            calls: arguments of its calls.
            key: of the call on which groups of linear layers are looked for.
        """

        def run() -> Any:
            with torch.inference_mode(False), torch.no_grad():
                args, kwargs = calls.get(key)
                return layer(*args, **kwargs)

        found = self._sites.find(part, layer, run)
        prefix = f"{part}."
        self.result.kept_float |= {
            name.rstrip("."): reason
            for name, reason in self._sites.kept_float.items()
            if name.startswith(prefix)
        }
        sites = tuple(gridded.site for gridded in found)
        return sites, {gridded.site.name: gridded.grids[self._grid] for gridded in found}

    def _write(self, part: str, quantizer: BlockQuantizer) -> None:
        """Write the shard of a part, its weights for the decoder's inputs, and its report."""
        number = self._numbers[part]
        write_tower_part(self.writer, number, part, quantizer.packed, quantizer.layer.state_dict())
        tensors = {name: value.contiguous() for name, value in quantizer.layer.state_dict().items()}
        safetensors.torch.save_file(tensors, self._weights_file(part))
        self.result.parts[part] = number
        self.result.rows += [{"block": part, **row} for row in quantizer.report]


def _run_calls(layer: nn.Module, calls: StoredTrees, keys: Sequence[str]) -> list[Any]:
    """Return the results of all calls of a batch."""
    results = []
    with torch.inference_mode():
        for key in keys:
            args, kwargs = calls.get(key)
            results.append(layer(*args, **kwargs))
    return results


def _count(counts: Counter[str], name: str, _: object) -> None:
    counts[name] += 1
