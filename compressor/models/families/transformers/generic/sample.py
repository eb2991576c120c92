"""Batches that fit a signature, for running a class before there is data."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from compressor.models.capabilities.signature import InputSpec

_TOKENS = 8
_IMAGE_SIDE = 64
_FRAMES = 64
_SAMPLES = 8000
_CHOICES = 2
_SIZES = {
    "tokens": _TOKENS,
    "decoder_tokens": _TOKENS,
    "height": _IMAGE_SIDE,
    "width": _IMAGE_SIDE,
    "frames": _FRAMES,
    "samples": _SAMPLES,
    "choices": _CHOICES,
}
"""Name of a variable dimension to a size that every usual class accepts."""


def sample_batch(
    inputs: Sequence[InputSpec], *, batch: int = 2, tokens: int = _TOKENS, device: str = "cpu"
) -> dict[str, Tensor]:
    """Return random inputs, equal in every call.

    Args:
        inputs: the inputs; optional ones are left out.
        batch: number of samples.
        tokens: length of sequences of tokens, if the model has as many positions.
        device: a torch device, ``meta`` for shapes alone.
    """
    generator = torch.Generator().manual_seed(0)
    values = {}
    for spec in inputs:
        if spec.optional:
            continue
        shape = [_size(axis, spec, batch, tokens) for axis in spec.shape]
        values[spec.name] = _values(spec, shape, generator).to(device)
    return values


def _size(axis: int | str, spec: InputSpec, batch: int, tokens: int) -> int:
    if isinstance(axis, int):
        return axis
    if axis == "batch":
        return batch
    size = tokens if axis.endswith("tokens") else _SIZES.get(axis, _TOKENS)
    return min(size, spec.longest) if spec.longest else size


def _values(spec: InputSpec, shape: list[int], generator: torch.Generator) -> Tensor:
    if spec.name.endswith("mask"):
        return torch.ones(shape, dtype=torch.int64)
    if spec.dtype == "float32":
        return torch.randn(shape, generator=generator)
    # The smallest ids are often special tokens, such as padding.
    low = min(4, (spec.below or 2) - 1)
    return end_texts(torch.randint(low, spec.below or 2, shape, generator=generator), spec)


def end_texts(values: Tensor, spec: InputSpec) -> Tensor:
    """Return sequences that end with the last value of their input, which nothing else has."""
    if spec.last is None:
        return values
    other = spec.last - 1 if spec.last else 1
    ended = torch.where(values == spec.last, other, values)
    ended[..., -1] = spec.last
    return ended
