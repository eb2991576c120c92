"""Widths of synthetic axes, for tests of size selection."""

from collections.abc import Sequence

import numpy as np

from compressor.models.capabilities.cuttable_axes import Axis
from passes.prune.allocation import Width, widths_of


def widths_from_scores(**scores: Sequence[float]) -> tuple[Width, ...]:
    """Build one width per keyword, whose units have the given scores; units go two at a time."""
    axes = [
        Axis(name, "channels", len(values), (), (((name,), 1),)) for name, values in scores.items()
    ]
    arrays = {name: np.array(values, float) for name, values in scores.items()}
    return widths_of(axes, arrays, multiple=2, min_keep=0.25)
