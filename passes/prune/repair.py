"""Least-squares repair of a pruned model, without training: tensors in, tensors out.

Shapes: C channels of a layer's input, K kept ones, D dropped ones, O outputs, N values.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from compressor.models.capabilities.cuttable_axes import Axis
from compressor.models.capabilities.unit_removal import kept_indices, rows_by_unit
from passes.prune.importance import Batches, Run, observe_channels, observe_inputs, readers_of

_DAMPING = 0.01
"""Fraction of the channels' mean energy that is added to each, as in GPTQ (Frantar et al. 2023)."""
_GRAM_BYTES = 2_000_000_000
"""Bytes of Gram matrices that are held at a time."""
_CHUNK_ELEMENTS = 1 << 24
"""Weights that are changed at a time in float64."""


def reconstruct_weights(
    model: nn.Module,
    axes: Sequence[Axis],
    kept_units: Mapping[str, Tensor],
    batches: Callable[[], Batches],
    run: Run,
) -> Iterator[tuple[str, Tensor]]:
    """Yield changed weights of the layers that read cut axes, one after another.

    The kept columns K of a weight W [O, C] are changed so that they alone reproduce its outputs on
    inputs X [N, C] as well as possible. The least-squares solution of ‖X·Wᵀ − X_K·W'ᵀ‖, damped by
    λ, adds W_D·G_DK·(G_KK + λI)⁻¹ to W_K, with the Gram matrix G = XᵀX (SlimGPT, Ling et al. 2024).
    Dropped columns are yielded unchanged.

    Linear layers and 1×1 convolutions are changed if their weights are used nowhere else.

    Args:
        model: the model before the cut.
        axes: the axes of the model.
        kept_units: axis name to the units to keep, int64, increasing.
        batches: returns all samples again. It is called several times if the Gram matrices of all
            layers take more than 2 GB.
        run: runs the model.
    """
    cut_axes = [axis for axis in axes if axis.name in kept_units]
    solvable = _solvable_layers(model)
    readers = {
        name: layer for name, layer in readers_of(model, cut_axes).items() if name in solvable
    }
    for group in _group_by_memory(readers):
        grams: dict[str, Tensor] = {}

        def add(reader: str, inputs_CN: Tensor, grams: dict[str, Tensor] = grams) -> None:
            inputs_CN = inputs_CN.float()
            gram_CC = inputs_CN @ inputs_CN.T
            grams[reader] = grams[reader] + gram_CC if reader in grams else gram_CC

        observe_channels(model, group, batches(), run, add)
        for reader, layer in group.items():
            if reader in grams:
                weight = layer.get_parameter("weight").detach()
                columns_K = _kept_columns(
                    f"{reader}.weight", cut_axes, kept_units, len(grams[reader])
                )
                yield f"{reader}.weight", _reconstruct(weight, grams[reader], columns_K)


def _kept_columns(
    tensor: str, axes: Sequence[Axis], kept_units: Mapping[str, Tensor], count: int
) -> Tensor:
    """Return the columns of a weight that no axis drops, int64, increasing."""
    kept = torch.ones(count, dtype=torch.bool)
    for axis in axes:
        for cut in axis.cuts:
            if cut.reads and cut.tensor == tensor:
                kept[cut.offset : cut.offset + cut.segments * axis.units * cut.block] = False
                kept[kept_indices(kept_units[axis.name], cut, axis.units)] = True
    return kept.nonzero().flatten()


def _group_by_memory(layers: Mapping[str, nn.Module]) -> Iterator[dict[str, nn.Module]]:
    """Yield groups of layers whose Gram matrices fit into memory, at least one layer each."""
    group: dict[str, nn.Module] = {}
    group_bytes = 0
    for name, layer in layers.items():
        gram_bytes = layer.get_parameter("weight").shape[1] ** 2 * torch.float32.itemsize
        if group and group_bytes + gram_bytes > _GRAM_BYTES:
            yield group
            group, group_bytes = {}, 0
        group[name] = layer
        group_bytes += gram_bytes
    if group:
        yield group


def _solvable_layers(model: nn.Module) -> set[str]:
    """Return the layers that are matrix products over channels, with weights of their own."""
    uses: dict[int, int] = {}
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            uses[id(parameter)] = uses.get(id(parameter), 0) + 1
    return {
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d)
        and uses.get(id(module.weight)) == 1  # a parametrized weight is computed anew
        and module.weight[0, 0].numel() == 1
        and getattr(module, "groups", 1) == 1
    }


def _reconstruct(weight: Tensor, gram_CC: Tensor, columns_K: Tensor) -> Tensor:
    """Return the weight with changed columns K, as ``reconstruct_weights`` describes."""
    matrix_OC = weight.flatten(1).cpu()
    dropped = torch.ones(len(gram_CC), dtype=torch.bool)
    dropped[columns_K] = False
    gram_CC = gram_CC.double()
    gram_KK = gram_CC[columns_K][:, columns_K]
    damping = _DAMPING * gram_KK.diagonal().mean().clamp(min=torch.finfo(torch.float32).tiny)
    gram_KK.diagonal().add_(damping)
    root_KK, gram_KD = torch.linalg.cholesky(gram_KK), gram_CC[columns_K][:, dropped]
    changed_OC = torch.empty_like(matrix_OC)
    rows = max(1, _CHUNK_ELEMENTS // matrix_OC.shape[1])
    for before_OC, after_OC in zip(
        torch.split(matrix_OC, rows), torch.split(changed_OC, rows), strict=True
    ):
        chunk_OC = before_OC.double()
        change_KO = torch.cholesky_solve(gram_KD @ chunk_OC[:, dropped].T, root_KK)
        after_OC.copy_(chunk_OC.index_add_(1, columns_K, change_KO.T))
    return changed_OC.reshape(weight.shape)


def rescale_norms(
    model: nn.Module,
    axes: Sequence[Axis],
    kept_units: Mapping[str, Tensor],
    batches: Batches,
    run: Run,
) -> dict[str, Tensor]:
    """Return the weights of RMS norms over cut axes, scaled so that outputs keep their size.

    A cut norm takes the root mean square over K of C channels, which hold a fraction κ of the
    energy (the mean over tokens), so its weights are multiplied by √(κ·C/K). If the removed
    channels are all zero (κ = 1), the output does not change.
    """
    norms = {
        cut.module: (axis, cut)
        for axis in axes
        if axis.name in kept_units
        for cut in axis.cuts
        if cut.norm
    }
    share_sums: dict[str, Tensor] = {}
    token_counts: dict[str, int] = {}

    def add(name: str, inputs: Tensor) -> None:
        energy_NC = inputs.flatten(0, -2).double().square()
        share_NC = energy_NC / energy_NC.sum(dim=1, keepdim=True).clamp(
            min=torch.finfo(torch.float64).tiny
        )
        share_sums[name] = share_sums.get(name, torch.zeros(())) + share_NC.sum(dim=0).cpu()
        token_counts[name] = token_counts.get(name, 0) + len(share_NC)

    observe_inputs(model, norms, batches, run, add)
    weights = {}
    for name, (axis, cut) in norms.items():
        shares_C = share_sums[name] / token_counts[name]
        shares_U = rows_by_unit(shares_C, replace(cut, dim=0), axis.units).sum(dim=1)
        units = kept_units[axis.name]
        factor = (shares_U[units].sum() * axis.units / len(units)).sqrt()
        weight = model.get_parameter(cut.tensor).detach().cpu()
        weights[cut.tensor] = (weight * factor.to(torch.float32)).to(weight.dtype)
    return weights
