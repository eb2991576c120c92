"""What training will take, from arithmetic and one quick measurement of the machine."""

from __future__ import annotations

from compressor.engine.contract import Estimate, ModelFacts
from compressor.engine.machine import gemm_flops_per_second
from passes.common.config import TrainingConfig

_FORWARD_AND_BACKWARD = 3
"""A backward pass costs twice a forward pass: one product for the inputs, one for the weights."""
_EFFICIENCY = 0.12
"""Share of the GEMM rate that training small convolutional models reaches; measured on the phone bed."""
_BYTES_PER_PARAMETER = 16
"""Weight, gradient and AdamW's two moments in float32."""
_PROCESS_BYTES = 450 << 20
"""A process with torch and a mapped data set, before any model."""
_ACTIVATION_BYTES_PER_MAC = 0.5
"""Activations kept for the backward pass, a sample; measured on the phone bed."""


def training_estimate(model: ModelFacts, training: TrainingConfig, forward_only: ModelFacts | None = None) -> Estimate:
    """Time, memory and disk of training ``model``; ``forward_only`` runs beside it, as a teacher does."""
    if model.parameters is None or model.macs is None:
        return Estimate(model=model)
    macs = _FORWARD_AND_BACKWARD * model.macs + ((forward_only.macs or 0) if forward_only else 0)
    flops = 2 * macs * training.batch_size * training.steps
    memory = _PROCESS_BYTES + _BYTES_PER_PARAMETER * model.parameters
    memory += int(_ACTIVATION_BYTES_PER_MAC * model.macs * training.batch_size)
    if forward_only is not None:
        memory += 4 * (forward_only.parameters or 0)
    return Estimate(
        model=model,
        seconds=flops / (_EFFICIENCY * gemm_flops_per_second()),
        peak_memory_bytes=memory,
        disk_bytes=4 * 5 * model.parameters,
    )
