"""The time of a model before and after a cut: of its operators by the table, and as a whole."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from compressor.artifacts.fingerprint import digest_json
from compressor.engine.contract import PassContext
from compressor.engine.machine import environment
from compressor.errors import RequirementError
from passes.common.device import device_of, tensors_from_batch
from passes.prune.allocation import Cost, Width
from passes.prune.latency import LatencyTable, latency_of, operators_of, torch_threads
from passes.prune.step import PruneConfig


class Clock:
    """Times models as ``latency:`` of the config says."""

    def __init__(self, config: PruneConfig, context: PassContext) -> None:
        assert config.latency is not None  # noqa: S101 - nobody asks otherwise
        self.timing = config.latency
        self.table = LatencyTable(
            self.timing.runtime,
            self.timing.threads,
            self.timing.repeats,
            context.cache,
            context.note,
        )
        self.dataset = context.data(str(config.calibration))

    def operators(self, module: nn.Module, widths: Sequence[Width]) -> Cost:
        """The units that widths keep to the milliseconds of all operators together, as one sample goes through them."""
        return latency_of(operators_of(module, self._sample(module)), widths, self.table)

    def whole(self, before: nn.Module, after: nn.Module) -> tuple[float, float] | None:
        """Median milliseconds of both models in torch, called in turns; None for another runtime.

        That would take an export of each, some ten seconds; the ladder times what ``export-onnx`` writes.
        """
        if self.timing.runtime != "torch":
            return None
        times: tuple[list[float], list[float]] = ([], [])
        sample = self._sample(before)
        with torch_threads(self.timing.threads), torch.inference_mode():
            for number in range(self.timing.repeats + 1):
                for module, found in zip((before, after), times, strict=True):
                    start = time.perf_counter()
                    module(**sample)
                    if number > 0:
                        found.append(1e3 * (time.perf_counter() - start))
        return median(times[0]), median(times[1])

    def record(self) -> dict[str, Any]:
        """What was timed where; the artifact's id cannot cover it, as it is known only once it is measured."""
        return {
            "cpu": environment(self.timing.threads, "cpu").cpu,
            "runtime": f"{self.timing.runtime} {self.table.version}",
            "threads": self.timing.threads,
            "operators": len(self.table.used),
            "table_sha256": digest_json(self.table.used),
        }

    def _sample(self, module: nn.Module) -> dict[str, Tensor]:
        batch = tensors_from_batch(
            self.dataset.batch(np.zeros(1, dtype=np.int64)), device_of(module)
        )
        return {name: batch[name] for name in self.dataset.input_names}


def check_faster(
    widths: Sequence[Width], sizes: Mapping[str, int], milliseconds: Cost, before: float
) -> None:
    """The operators of the smaller model take less time together than the parent's, which take ``before``.

    Raises:
        RequirementError: they do not; with the time that each width alone wins or loses.
    """
    whole = {width.label: width.units for width in widths}
    now, after = milliseconds(whole), milliseconds(sizes)
    if after >= before and dict(sizes) != whole:
        alone = (
            f"{label} {whole[label]} → {size}: {milliseconds({**whole, label: size}) - now:+.4f} ms"
            for label, size in sizes.items()
            if size < whole[label]
        )
        raise RequirementError(
            f"the smaller model is not faster here: {before:.3f} ms before, {after:.3f} ms after; "
            + "; ".join(alone),
            remedy="aim at latency_ms instead, or ask for a larger `multiple`",
        )
