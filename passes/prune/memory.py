"""Scoring and cutting with the memory of one layer.

Gradients, activations and weights of the whole model are never held at once. Weights of a model
folder are memory-mapped, and the kernel evicts pages that are not in use; ``map_to_disk`` does the
same for computed tensors.
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
"""Smaller tensors are copied in memory."""


def map_to_disk(tensors: Iterable[tuple[str, Tensor]], folder: Path) -> dict[str, Tensor]:
    """Write tensors to files and return them memory-mapped.

    The files are unlinked at once, so the kernel removes them with the last tensor that uses them.
    The maps are private: writes to a tensor stay in memory.

    Args:
        tensors: names and tensors; each is released before the next is taken.
        folder: the folder of the temporary file.

    Raises:
        StorageError: the disk is full, or the folder cannot be written.
    """
    mapped = {}
    for name, tensor in tensors:
        if tensor.nbytes < _SMALL_BYTES:
            mapped[name] = tensor.clone()
            continue
        file = folder / "tensor.part"
        with writing(file):
            tensor.contiguous().view(torch.uint8).numpy().tofile(file)
            storage = torch.from_file(
                str(file), shared=False, size=tensor.numel(), dtype=tensor.dtype
            )
            file.unlink()
        mapped[name] = storage.view(tensor.shape)
        del tensor
        trim_heap()
    return mapped


@contextmanager
def recompute_activations(model: nn.Module, stacks: Iterable[str]) -> Iterator[None]:
    """Keep only the input of each layer for a backward pass, within the block.

    The other activations are computed again in the backward pass (Chen et al. 2016).

    Args:
        model: the model.
        stacks: names of the module lists that hold the layers.
    """
    layers = [layer for stack in stacks for layer in model.get_submodule(stack).children()]
    forwards = [layer.forward for layer in layers]
    try:
        for layer, forward in zip(layers, forwards, strict=True):
            layer.forward = partial(
                checkpoint, forward, use_reentrant=False, preserve_rng_state=False
            )
        yield
    finally:
        for layer in layers:
            del layer.forward


@contextmanager
def consume_gradients(
    model: nn.Module,
    weights: Collection[nn.Parameter],
    consume: Callable[[nn.Parameter, Tensor], None],
) -> Iterator[None]:
    """Pass each gradient to ``consume`` as soon as it is computed, then free it, within the block.

    Args:
        model: the model; gradients that it already has are cleared.
        weights: the parameters to compute gradients of; the others need none.
        consume: called as (weight, gradient) in the course of a backward pass.
    """

    def pass_on(weight: Tensor) -> None:
        gradient, weight.grad = weight.grad, None
        if isinstance(weight, nn.Parameter) and gradient is not None:
            consume(weight, gradient)

    requires_grad = {parameter: parameter.requires_grad for parameter in model.parameters()}
    model.requires_grad_(False)
    model.zero_grad()  # Gradients of an earlier training would be added to.
    handles = []
    try:
        for weight in weights:
            weight.requires_grad_(True)
            register = weight.register_post_accumulate_grad_hook
            handles.append(register(pass_on))  # type: ignore[no-untyped-call]
        yield
    finally:
        for handle in handles:
            handle.remove()
        for parameter, required in requires_grad.items():
            parameter.requires_grad_(required)
