"""Quantization-aware training: fine-tuning with rounding in the forward pass."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from compressor.engine.contract import PassContext
from compressor.errors import NumericalError
from compressor.models.capabilities.training_heads import TrainingHeads
from compressor.models.quantized.fake_quantization import FakeQuantizer
from passes.common.losses import distillation_losses
from passes.common.task import Callbacks, RunSettings, Task
from passes.common.training import fit
from passes.qat.config import FineTuning


def fine_tune(
    config: FineTuning,
    heads: TrainingHeads,
    module: nn.Module,
    teacher: nn.Module,
    context: PassContext,
) -> dict[str, Any]:
    """Train a quantized module in place on labels and on the outputs of its float teacher.

    Returns:
        Summary of the training for the manifest.

    Raises:
        NumericalError: A scale is not finite or not positive after the training.
    """
    dataset = context.data(config.train)
    quantizers = [layer for layer in module.modules() if isinstance(layer, FakeQuantizer)]

    def schedule_scales(progress: float) -> None:
        changing = progress < config.freeze_after
        for quantizer in quantizers:
            quantizer.follows = changing and config.scales == "observed"
            quantizer.log2_scale.requires_grad_(changing and config.scales == "learned")

    def loss(outputs: dict[str, Tensor], batch: dict[str, Tensor], _: float) -> dict[str, Tensor]:
        soft: dict[str, Tensor] = {}
        if config.soft_weight > 0:
            with torch.no_grad():
                target = teacher(**{name: batch[name] for name in dataset.input_names})
                soft = heads.logits(teacher, target)
        return distillation_losses(
            heads.logits(module, outputs),
            batch,
            soft,
            weight=config.soft_weight,
            temperature=config.temperature,
        )

    module.requires_grad_(True)
    schedule_scales(0.0)
    validation = context.data(config.validation) if config.validation else None
    callbacks = Callbacks(partial(context.progress, "step"), context.note, schedule_scales)
    settings = RunSettings(context.seed, context.work)
    result = fit(module, Task(dataset, loss, validation), config.training, settings, callbacks)
    _check_scales(module)
    return result.summary()


def _check_scales(module: nn.Module) -> None:
    diverged = [
        name
        for name, quantizer in module.named_modules()
        if isinstance(quantizer, FakeQuantizer) and not quantizer.is_sound()
    ]
    if diverged:
        raise NumericalError(
            f"quantization scales diverged in training: {', '.join(diverged)}",
            remedy="lower `learning_rate`, or use `scales: fixed`",
        )
