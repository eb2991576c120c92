"""Estimates of training: time, memory and disk, from arithmetic and the machine's GEMM rate."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from compressor.data.contract import DataFacts
from compressor.engine.contract import Estimate
from compressor.engine.machine import environment, gemm_flops_per_second
from compressor.models.capabilities.signature import Signature
from compressor.models.capabilities.streamed_layers import StreamedLayers
from compressor.models.facts import ModelFacts
from passes.common.config import TrainingConfig

_START_SECONDS = 2.2
"""Loading and checking the model, opening the data, saving and checking the result: measured on
the phone bed."""
_FORWARD_AND_BACKWARD = 3
"""Cost of a forward and a backward pass, in forward passes: a backward pass computes two products,
for the gradients of the inputs and of the weights."""
_FROZEN_FORWARD_AND_BACKWARD = 2
"""The same without the gradients of the weights."""
_EFFICIENCY = 0.3
"""Part of the GEMM rate that training reaches: measured on the phone bed, 4 commands a screen."""
_BYTES_PER_PARAMETER = 16
"""Weight, gradient and AdamW's two moments in float32."""
_PROCESS_BYTES = 450 << 20
"""A process with torch and a memory-mapped data set, before any model."""
_ACTIVATION_BYTES_PER_MAC = 0.35
"""Activations of one sample that are kept for the backward pass: measured on the phone bed."""
_ACTIVATION_WIDTHS = 12.0
"""The same for a transformer, times its width: a value that is kept belongs to a product over the
width. Measured on all-MiniLM-L6-v2: 7.7 for texts of 64 tokens, 9.6 for 128."""
_KEPT_VALUES = 1.25
"""Values of a token that a decoder keeps for the backward pass, for each input and output of its
linear layers: counted in training of classes of transformers, 1.10 (Llama) to 1.48 (Gemma 3)."""
_KEPT_VALUES_FROZEN = 0.9
"""The same if the weights of the layers are frozen, whose inputs are not kept: 0.78 to 1.03."""
_LOGIT_COPIES = 4
"""Logits, their softmax, and the gradients of both."""
_FLOAT_BYTES = 4
_DISK_BYTES_PER_PARAMETER = 20
"""A checkpoint of weights, moments and averaged weights, and the saved model, in float32."""


def training_seconds(model: ModelFacts, forward_passes: float) -> float | None:
    """Return the time of a number of forward passes of one sample, or passes that cost as much.

    None for models whose MACs are per token: decoders reach other parts of the GEMM rate.
    """
    if not _has_macs_per_sample(model):
        return None
    return _START_SECONDS + forward_seconds(model.macs or 0, forward_passes)


def forward_seconds(macs: int, forward_passes: float) -> float:
    """Return the time of forward passes of ``macs`` multiply-accumulates each."""
    return 2 * macs * forward_passes / (_EFFICIENCY * gemm_flops_per_second())


def positions_per_sample(model: ModelFacts, data: DataFacts | None) -> int | None:
    """Return how often a sample costs the model's MACs: 1, or its tokens if MACs are per token.

    The length of a data set's samples is that of its longest input; None if a length is not known.
    """
    if _has_macs_per_sample(model):
        return 1
    inputs = (data.inputs or ()) if data is not None else ()
    lengths = [entry.shape[0] for entry in inputs if len(entry.shape) == 1]
    known = [length for length in lengths if length is not None]
    return max(known) if known and len(known) == len(lengths) else None


def _has_macs_per_sample(model: ModelFacts) -> bool:
    signature = model.capability(Signature)
    return signature is None or signature.unit == "sample"


def training_memory(
    model: ModelFacts, batch_size: int, data: DataFacts | None = None, *, is_frozen: bool = False
) -> int:
    """Return the memory in bytes of a process that trains the model.

    Activations are not counted for models whose MACs are per token, if the length of the samples is
    not known.

    Args:
        model: the model.
        batch_size: samples whose activations are kept at once.
        data: the data set to train on.
        is_frozen: True if few weights are trained beside those of the model.
    """
    per_parameter = _FLOAT_BYTES if is_frozen else _BYTES_PER_PARAMETER
    return (
        _PROCESS_BYTES
        + per_parameter * (model.parameters or 0)
        + _activation_bytes(model, batch_size, data, is_frozen=is_frozen)
    )


def mapped_memory(
    model: ModelFacts, batch_size: int, mapped_bytes: int, data: DataFacts | None = None
) -> int:
    """Return the memory in bytes of forward and backward passes with memory-mapped weights.

    No gradients are kept. The kernel keeps as much of the mapped files in memory as there is room
    for; this assumes at most half of the machine's memory.
    """
    return (
        _PROCESS_BYTES
        + min(mapped_bytes, environment(1, "cpu").memory_bytes // 2)
        + _activation_bytes(model, batch_size, data)
    )


def _activation_bytes(
    model: ModelFacts, batch_size: int, data: DataFacts | None, *, is_frozen: bool = False
) -> int:
    positions = positions_per_sample(model, data)
    if positions is None:
        return 0
    layers = None if _has_macs_per_sample(model) else model.capability(StreamedLayers)
    if layers is not None:
        return _decoder_bytes(model, layers, is_frozen=is_frozen) * positions * batch_size
    widths = hidden_sizes(model.config or {})
    per_mac = _ACTIVATION_BYTES_PER_MAC
    if widths:
        per_mac = min(per_mac, _ACTIVATION_WIDTHS / min(widths))
    return int(per_mac * (model.macs or 0) * positions * batch_size)


def _decoder_bytes(model: ModelFacts, layers: StreamedLayers, *, is_frozen: bool) -> int:
    """Return the bytes that a decoder keeps of one token; of experts, those that a token takes."""
    values = sum(outputs + inputs for outputs, inputs in layers.decoder.values())
    outputs, inputs = layers.head
    weights = layers.decoder_weights + outputs * inputs
    share = min(1.0, (model.macs or weights) / weights)
    per_value = _KEPT_VALUES_FROZEN if is_frozen else _KEPT_VALUES
    return int(_FLOAT_BYTES * (per_value * share * values + _LOGIT_COPIES * outputs))


def hidden_sizes(config: Mapping[str, Any]) -> list[int]:
    """Return the widths of the transformers in a config, those of nested configs too."""
    sizes = []
    for name, value in config.items():
        if isinstance(value, Mapping):
            sizes += hidden_sizes(value)
        elif name == "hidden_size" and isinstance(value, int):
            sizes.append(value)
    return sizes


def training_estimate(
    model: ModelFacts,
    training: TrainingConfig,
    forward_only: ModelFacts | None = None,
    data: DataFacts | None = None,
    *,
    is_frozen: bool = False,
) -> Estimate:
    """Estimate the training of a model.

    Args:
        model: The model that is trained; without its parameters or MACs nothing is estimated.
        training: Number of steps and batch size.
        forward_only: A model that runs on the same batches, such as a teacher.
        data: The data set to train on.
        is_frozen: True if few weights are trained beside those of the model.
    """
    if model.parameters is None or model.macs is None:
        return Estimate(model=model)
    trained = _FROZEN_FORWARD_AND_BACKWARD if is_frozen else _FORWARD_AND_BACKWARD
    passes = trained + ((forward_only.macs or 0) / model.macs if forward_only else 0)
    memory = training_memory(model, training.batch_size, data, is_frozen=is_frozen)
    if forward_only is not None:
        memory += _FLOAT_BYTES * (forward_only.parameters or 0)
    return Estimate(
        model=model,
        seconds=training_seconds(model, passes * training.batch_size * training.steps),
        peak_memory_bytes=memory,
        disk_bytes=None if is_frozen else _DISK_BYTES_PER_PARAMETER * model.parameters,
    )
