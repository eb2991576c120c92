"""A model and a target in, a smaller model out."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor, nn

from compressor.artifacts.store import Artifact
from compressor.engine.contract import PassContext, PassOutput
from compressor.models.loading import save_module
from passes.prune.planning import PlannedCut, planned_cut
from passes.prune.repair import least_squares, norm_scales
from passes.prune.step import PruneConfig
from passes.prune.surgery import without


def prune(config: PruneConfig, parent: Artifact, out: Path, context: PassContext) -> PassOutput:
    """Cut, and save into ``out``."""
    cut = planned_cut(config, parent, context)
    smaller = cut_module(cut, repair=config.repair)
    save_module(smaller, cut.family.name, cut.after, out, parent.model)
    return PassOutput({"cuts": list(cut.rows())})


def cut_module(cut: PlannedCut, *, repair: bool) -> nn.Module:
    """The smaller module."""
    state: dict[str, Tensor] = {name: tensor.detach().cpu() for name, tensor in cut.module.state_dict().items()}
    if cut.calibration is not None:
        batches, loss = cut.calibration.batches, cut.calibration.loss
        if any(one.norm for axis in cut.axes if axis.name in cut.kept for one in axis.cuts):
            state |= norm_scales(cut.module, cut.axes, cut.kept, batches("norms"), loss)
        if repair and cut.kept:
            state |= least_squares(cut.module, cut.axes, cut.kept, batches("repair"), loss)
    smaller = cut.family.build(cut.after)
    smaller.load_state_dict(without(state, cut.axes, cut.kept))
    return smaller.eval()
