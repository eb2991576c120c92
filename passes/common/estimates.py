"""What training will take, from arithmetic and one quick measurement of the machine."""

from __future__ import annotations

from compressor.engine.contract import Estimate
from compressor.engine.machine import environment, gemm_flops_per_second
from compressor.models.capabilities.signature import Signature
from compressor.models.facts import ModelFacts
from passes.common.config import TrainingConfig

_FORWARD_AND_BACKWARD = 3
"""A backward pass costs twice a forward pass: one product for the inputs, one for the weights."""
_EFFICIENCY = 0.33
"""Share of the GEMM rate that training reaches; measured on the phone bed, with four commands a screen."""
_BYTES_PER_PARAMETER = 16
"""Weight, gradient and AdamW's two moments in float32."""
_PROCESS_BYTES = 450 << 20
"""A process with torch and a mapped data set, before any model."""
_ACTIVATION_BYTES_PER_MAC = 0.35
"""Activations kept for the backward pass, a sample; measured on the phone bed."""


def training_seconds(model: ModelFacts, samples: float) -> float | None:
    """The time of so many forward passes of the model, backward ones counted alike.

    None where its arithmetic is told by the token: a plan does not know how long the samples are.
    """
    if not _told_by_sample(model):
        return None
    return 2 * (model.macs or 0) * samples / (_EFFICIENCY * gemm_flops_per_second())


def _told_by_sample(model: ModelFacts) -> bool:
    signature = model.capability(Signature)
    return signature is None or signature.unit == "sample"


def training_memory(model: ModelFacts, batch_size: int) -> int:
    """Bytes of a process that trains the model; less its activations, where a plan does not know how long the samples are."""
    return (
        _PROCESS_BYTES
        + _BYTES_PER_PARAMETER * (model.parameters or 0)
        + _activations(model, batch_size)
    )


def mapped_memory(model: ModelFacts, batch_size: int, maps: int) -> int:
    """Bytes of a process that runs a model forwards and backwards, keeps no gradients, and has its weights in ``maps`` of files.

    The kernel keeps of those what there is room for; half of the memory, at most, is taken to be.
    """
    return (
        _PROCESS_BYTES
        + min(maps, environment(1, "cpu").memory_bytes // 2)
        + _activations(model, batch_size)
    )


def _activations(model: ModelFacts, batch_size: int) -> int:
    return (
        int(_ACTIVATION_BYTES_PER_MAC * (model.macs or 0) * batch_size)
        if _told_by_sample(model)
        else 0
    )


def training_estimate(
    model: ModelFacts, training: TrainingConfig, forward_only: ModelFacts | None = None
) -> Estimate:
    """Time, memory and disk of training ``model``; ``forward_only`` runs beside it, as a teacher does."""
    if model.parameters is None or model.macs is None:
        return Estimate(model=model)
    passes = _FORWARD_AND_BACKWARD + ((forward_only.macs or 0) / model.macs if forward_only else 0)
    memory = training_memory(model, training.batch_size)
    if forward_only is not None:
        memory += 4 * (forward_only.parameters or 0)
    return Estimate(
        model=model,
        seconds=training_seconds(model, passes * training.batch_size * training.steps),
        peak_memory_bytes=memory,
        disk_bytes=4 * 5 * model.parameters,
    )
