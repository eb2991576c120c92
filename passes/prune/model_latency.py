"""Latency of a model before and after a cut: summed over operators, and as a whole."""

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
from passes.prune.allocation import Cost, Width, all_units
from passes.prune.config import LatencyConfig, PruneConfig
from passes.prune.operator_latency import (
    LatencyTable,
    latency_cost,
    torch_threads,
    trace_operators,
)


class LatencyMeter:
    """Measures models on the first sample of a data set."""

    def __init__(self, config: LatencyConfig, calibration: str, context: PassContext) -> None:
        self.config = config
        self.table = LatencyTable(config, context.cache, context.note)
        self.dataset = context.data(calibration)

    def operator_cost(self, module: nn.Module, widths: Sequence[Width]) -> Cost:
        """Return the time of all operators in milliseconds as a function of sizes."""
        return latency_cost(trace_operators(module, self._sample(module)), widths, self.table)

    def compare_models(self, before: nn.Module, after: nn.Module) -> tuple[float, float] | None:
        """Return the median time of both models in milliseconds, measured in alternation.

        None if the runtime is not torch: another runtime would need an export of each model, which
        takes some ten seconds, and the reports measure exported models anyway.
        """
        if self.config.runtime != "torch":
            return None
        milliseconds: tuple[list[float], list[float]] = ([], [])
        sample = self._sample(before)
        with torch_threads(self.config.threads), torch.inference_mode():
            for number in range(self.config.repeats + 1):
                for module, measured in zip((before, after), milliseconds, strict=True):
                    start = time.perf_counter()
                    module(**sample)
                    if number > 0:
                        measured.append(1e3 * (time.perf_counter() - start))
        return median(milliseconds[0]), median(milliseconds[1])

    def record(self) -> dict[str, Any]:
        """Return what was measured, and on which machine, for the manifest.

        The artifact's id does not cover the measurements, which are made after it is computed.
        """
        return {
            "cpu": environment(self.config.threads, "cpu").cpu,
            "runtime": f"{self.config.runtime} {self.table.version}",
            "threads": self.config.threads,
            "operators": len(self.table.used),
            "table_sha256": digest_json(self.table.used),
        }

    def _sample(self, module: nn.Module) -> dict[str, Tensor]:
        batch = tensors_from_batch(
            self.dataset.batch(np.zeros(1, dtype=np.int64)), device_of(module)
        )
        return {name: batch[name] for name in self.dataset.input_names}


def create_meter(config: PruneConfig, context: PassContext) -> LatencyMeter | None:
    """Return the meter for a config; None without `latency`."""
    if config.latency is None:
        return None
    return LatencyMeter(config.latency, str(config.calibration), context)


def check_faster(
    widths: Sequence[Width], sizes: Mapping[str, int], milliseconds: Cost, parent: float
) -> None:
    """Check that the operators of the pruned model take less time than the parent's.

    Args:
        widths: the widths that may be cut.
        sizes: units to keep of each width, by label.
        milliseconds: time of all operators for given sizes.
        parent: time of all operators of the parent, in milliseconds.

    Raises:
        RequirementError: they do not; the message states the effect of each width alone.
    """
    whole = all_units(widths)
    current, after = milliseconds(whole), milliseconds(sizes)
    if after >= parent and dict(sizes) != whole:
        effects = (
            f"{label} {whole[label]} → {size}: "
            f"{milliseconds({**whole, label: size}) - current:+.4f} ms"
            for label, size in sizes.items()
            if size < whole[label]
        )
        raise RequirementError(
            f"the pruned model is not faster on this machine: {parent:.3f} ms before, "
            f"{after:.3f} ms after; " + "; ".join(effects),
            remedy="set a target of latency_ms instead, or a larger `multiple`",
        )
