"""What a training pass tells of how it went."""

from __future__ import annotations

from typing import Any

from passes.common.training import TrainingResult


def summary_of(result: TrainingResult) -> dict[str, Any]:
    """JSON values for the manifest; the same whether or not the run was interrupted."""
    return {
        "history": result.history,
        "steps": result.steps,
        "kept_step": result.kept_step,
        "stopped_early": result.stopped_early,
    }
