"""Units without effect, and widths of synthetic axes, for tests of the pass prune."""

from collections.abc import Sequence

import numpy as np
from torch import Tensor, nn

from compressor.models.capabilities.cuttable_axes import Axis
from passes.prune.allocation import Width, group_axes

_LAST_TENSORS = (
    "out.weight",
    "out.bias",
    "down.weight",
    "down.bias",
    "ffn.down.weight",
    "self_attn.o_proj.weight",
    "mlp.down_proj.weight",
    "project_norm.weight",
    "project_norm.bias",
)
"""Last tensors of the sublayers of a layer, or of a residual block. If all of them are zero, the
layer returns its input."""


def silence(model: nn.Module, axis: Axis, units: Tensor) -> None:
    """Set weights to zero so that the given units have no effect on the outputs.

    These are the columns that read the units; before a norm also the weights that write them.
    """
    state = model.state_dict()
    has_norm = any(cut.norm for cut in axis.cuts)
    for cut in axis.cuts:
        if not cut.norm and (has_norm or cut.reads):
            rows = state[cut.tensor].movedim(cut.dim, 0)
            rows.unflatten(0, (cut.segments, axis.units, cut.block))[:, units] = 0
    for member in axis.members(units.tolist()) if axis.stack else []:
        layer = f"{axis.stack}.{member}"
        for last in _LAST_TENSORS:
            for name in (f"{layer}.{last}", f"{layer}.attention.{last}"):
                if name in state:
                    state[name].zero_()


def widths_from_scores(**scores: Sequence[float]) -> tuple[Width, ...]:
    """Build one width per keyword, whose units have the given scores; units go two at a time."""
    axes = [
        Axis(name, "channels", len(values), (), (((name,), 1),)) for name, values in scores.items()
    ]
    arrays = {name: np.array(values, float) for name, values in scores.items()}
    return group_axes(axes, arrays, multiple=2, min_keep=0.25)
