"""Fine-tuning with the rounding in place, from labels and from what the float parent says."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from compressor.engine.contract import PassContext
from compressor.errors import NumericalError
from compressor.models.capabilities.training_heads import TrainingHeads
from compressor.models.quantized.fake_quantization import Rounding
from passes.common.losses import distillation_losses
from passes.common.outcome import summary_of
from passes.common.training import fit
from passes.qat.step import FineTuning


def train(
    config: FineTuning,
    heads_of: TrainingHeads,
    module: nn.Module,
    teacher: nn.Module,
    context: PassContext,
) -> dict[str, Any]:
    """Train the module in place; what the manifest says of it.

    Raises:
        NumericalError: a scale went astray.
    """
    dataset = context.data(config.train)
    grids = [one for one in module.modules() if isinstance(one, Rounding)]

    def schedule(fraction: float) -> None:
        changing = fraction < config.freeze_after
        for grid in grids:
            grid.follows = changing and config.scales == "observed"
            grid.log2_scale.requires_grad_(changing and config.scales == "learned")

    def terms(outputs: dict[str, Tensor], batch: dict[str, Tensor], _: float) -> dict[str, Tensor]:
        taught: dict[str, Tensor] = {}
        if config.soft_weight > 0:
            with torch.no_grad():
                taught = heads_of.logits(
                    teacher, teacher(**{name: batch[name] for name in dataset.input_names})
                )
        heads = heads_of.logits(module, outputs)
        return distillation_losses(
            heads, batch, taught, weight=config.soft_weight, temperature=config.temperature
        )

    module.requires_grad_(True)
    schedule(0.0)
    result = fit(
        module,
        dataset,
        config.training,
        seed=context.seed,
        objective=terms,
        before_step=schedule,
        checkpoint_dir=context.work,
        validation=context.data(config.validation) if config.validation else None,
        progress=lambda done, total, figures: context.progress("step", done, total, figures),
        note=context.note,
    )
    if astray := [
        name
        for name, one in module.named_modules()
        if isinstance(one, Rounding) and not one.is_sound()
    ]:
        raise NumericalError(
            f"scales went astray in training: {', '.join(astray)}",
            remedy="lower learning_rate, or use scales: fixed",
        )
    return summary_of(result)
