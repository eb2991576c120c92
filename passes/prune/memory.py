"""Scoring and cutting in the memory of one layer: neither gradients nor activations nor weights of the whole model are held.

Weights of a model folder are mapped from its files, and the kernel drops what is not in use; ``on_disk`` makes such maps of what
is computed.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from compressor.artifacts.errors_from_os import writing
from passes.common.device import trim_heap

_SMALL_BYTES = 1 << 20
"""What is less is copied in memory."""


def on_disk(tensors: Iterable[tuple[str, Tensor]], folder: Path) -> dict[str, Tensor]:
    """The tensors as maps of files without a name, which go when nobody uses them; what is written to them stays in memory.

    Raises:
        StorageError: the disk is full, or the folder may not be written.
    """
    found = {}
    for name, tensor in tensors:
        if tensor.nbytes < _SMALL_BYTES:
            found[name] = tensor.clone()
            continue
        file = folder / "tensor.part"
        with writing(file):
            tensor.contiguous().view(torch.uint8).numpy().tofile(file)
            mapped = torch.from_file(
                str(file), shared=False, size=tensor.numel(), dtype=tensor.dtype
            )
            file.unlink()
        found[name] = mapped.view(tensor.shape)
        del tensor
        trim_heap()
    return found


@contextmanager
def recomputed(model: nn.Module, stacks: Iterable[str]) -> Iterator[None]:
    """Of each layer of these lists a backward pass finds the input alone; it computes the rest again (Chen et al. 2016)."""
    layers = [layer for stack in stacks for layer in model.get_submodule(stack).children()]
    before = [layer.forward for layer in layers]
    try:
        for layer, forward in zip(layers, before, strict=True):
            layer.forward = partial(
                checkpoint, forward, use_reentrant=False, preserve_rng_state=False
            )
        yield
    finally:
        for layer in layers:
            del layer.forward


@contextmanager
def gradients_as_they_come(
    model: nn.Module,
    weights: Collection[nn.Parameter],
    take: Callable[[nn.Parameter, Tensor], None],
) -> Iterator[None]:
    """Within, a backward pass hands the gradient of each of ``weights`` to ``take`` and forgets it; other weights get none."""

    def hand_on(weight: Tensor) -> None:
        gradient, weight.grad = weight.grad, None
        if isinstance(weight, nn.Parameter) and gradient is not None:
            take(weight, gradient)

    before = {parameter: parameter.requires_grad for parameter in model.parameters()}
    model.requires_grad_(False)
    model.zero_grad()  # what a training before left would be added to
    handles = []
    try:
        for weight in weights:
            weight.requires_grad_(True)
            handles.append(weight.register_post_accumulate_grad_hook(hand_on))  # type: ignore[no-untyped-call]
        yield
    finally:
        for handle in handles:
            handle.remove()
        for parameter, learns in before.items():
            parameter.requires_grad_(learns)
