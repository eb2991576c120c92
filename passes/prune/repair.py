"""What the units that stay can do for those that go, without training: tensors in, tensors out.

Shapes: C channels of a layer's input, K of them kept, D dropped, O outputs, N values.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from compressor.models.capabilities.cuttable_axes import Axis
from passes.prune.importance import Batches, Loss, readers_of, watch_channels, watch_inputs
from passes.prune.surgery import indices_of, units_of

_DAMPING = 0.01
"""Part of the mean energy of a channel that is added to each, as in GPTQ (Frantar et al. 2023)."""
_GRAM_BYTES = 2_000_000_000
"""Of Gram matrices held at a time."""
_WEIGHTS_AT_ONCE = 1 << 24
"""That are changed together in float64."""


def least_squares(
    model: nn.Module,
    axes: Sequence[Axis],
    kept: Mapping[str, Tensor],
    batches: Callable[[], Batches],
    loss: Loss,
) -> Iterator[tuple[str, Tensor]]:
    """Weights of what reads the axes, such that their kept columns alone answer as all did, as nearly as they can, one by one.

    For inputs X [N, C] and weights W [O, C], the change of W_K is W_D·G_DK·(G_KK + λI)⁻¹ with G = XᵀX: the least-squares solution
    of ‖X·Wᵀ − X_K·W'ᵀ‖, damped (as in SlimGPT, Ling et al. 2024, and SparseGPT for columns). Linear layers and 1×1 convolutions
    whose weights nothing else uses; the others stay as they are. ``batches`` gives all samples anew: where the Gram matrices of
    all layers would take more than 2 GB, layers take turns, each with its own pass over the samples.
    """
    cut = [axis for axis in axes if axis.name in kept]
    solvable = _solvable(model)
    readers = {name: module for name, module in readers_of(model, cut).items() if name in solvable}
    for some in _in_turns(readers):
        grams: dict[str, Tensor] = {}

        def add(reader: str, inputs_CN: Tensor, grams: dict[str, Tensor] = grams) -> None:
            inputs_CN = inputs_CN.float()
            gram_CC = inputs_CN @ inputs_CN.T
            grams[reader] = grams[reader] + gram_CC if reader in grams else gram_CC

        watch_channels(model, some, batches(), loss, add)
        for axis in cut:
            for one in axis.cuts:
                if one.reads and one.module in grams:
                    columns_K = indices_of(kept[axis.name], one, axis.units)
                    weight = model.get_parameter(one.tensor).detach()
                    yield one.tensor, _answering_alone(weight, grams[one.module], columns_K)


def _in_turns(readers: Mapping[str, nn.Module]) -> Iterator[dict[str, nn.Module]]:
    """As many layers at a time as their Gram matrices leave room for, one at least."""
    some: dict[str, nn.Module] = {}
    taken = 0
    for name, module in readers.items():
        size = module.get_parameter("weight").shape[1] ** 2 * torch.float32.itemsize
        if some and taken + size > _GRAM_BYTES:
            yield some
            some, taken = {}, 0
        some[name] = module
        taken += size
    if some:
        yield some


def _solvable(model: nn.Module) -> set[str]:
    """Layers that are matrix products over their channels, with weights of their own."""
    uses: dict[int, int] = {}
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            uses[id(parameter)] = uses.get(id(parameter), 0) + 1
    return {
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d)
        and uses[id(module.weight)] == 1
        and module.weight[0, 0].numel() == 1
        and getattr(module, "groups", 1) == 1
    }


def _answering_alone(weight: Tensor, gram_CC: Tensor, columns_K: Tensor) -> Tensor:
    """The weight with its kept columns changed; the others are as they were."""
    matrix_OC = weight.flatten(1).cpu()
    dropped = torch.ones(len(gram_CC), dtype=torch.bool)
    dropped[columns_K] = False
    gram_CC = gram_CC.double()
    gram_KK = gram_CC[columns_K][:, columns_K]
    damping = _DAMPING * gram_KK.diagonal().mean().clamp(min=torch.finfo(torch.float32).tiny)
    gram_KK.diagonal().add_(damping)
    root_KK, gram_KD = torch.linalg.cholesky(gram_KK), gram_CC[columns_K][:, dropped]
    changed_OC = torch.empty_like(matrix_OC)
    some = max(1, _WEIGHTS_AT_ONCE // matrix_OC.shape[1])
    for before_OC, after_OC in zip(
        torch.split(matrix_OC, some), torch.split(changed_OC, some), strict=True
    ):
        part_OC = before_OC.double()
        change_KO = torch.cholesky_solve(gram_KD @ part_OC[:, dropped].T, root_KK)
        after_OC.copy_(part_OC.index_add_(1, columns_K, change_KO.T))
    return changed_OC.reshape(weight.shape)


def norm_scales(
    model: nn.Module, axes: Sequence[Axis], kept: Mapping[str, Tensor], batches: Batches, loss: Loss
) -> dict[str, Tensor]:
    """The weights of RMS norms over fewer units, such that what they let through keeps its size.

    The root mean square is then taken over K of C channels with the part κ of the energy, so weights take √(κ·C/K); κ is the
    mean over tokens. Where what goes is silent (κ = 1), the output stays exactly.
    """
    norms = {
        one.module: (axis, one)
        for axis in axes
        if axis.name in kept
        for one in axis.cuts
        if one.norm
    }
    shares: dict[str, Tensor] = {}
    counts: dict[str, int] = {}

    def see(name: str, inputs: Tensor) -> None:
        energy_NC = inputs.flatten(0, -2).double().square()
        share_NC = energy_NC / energy_NC.sum(dim=1, keepdim=True).clamp(
            min=torch.finfo(torch.float64).tiny
        )
        shares[name] = shares.get(name, torch.zeros(())) + share_NC.sum(dim=0).cpu()
        counts[name] = counts.get(name, 0) + len(share_NC)

    watch_inputs(model, norms, batches, loss, see)
    weights = {}
    for name, (axis, one) in norms.items():
        by_unit = units_of(shares[name] / counts[name], replace(one, dim=0), axis.units).sum(dim=1)
        units = kept[axis.name]
        factor = (by_unit[units].sum() * axis.units / len(units)).sqrt()
        weight = model.get_parameter(one.tensor).detach().cpu()
        weights[one.tensor] = (weight * factor.to(torch.float32)).to(weight.dtype)
    return weights
