"""Mixed precision of models that are loaded whole: bits by the change of the outputs."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence

import torch
from torch import Tensor, nn

from compressor.errors import RequirementError
from compressor.models.capabilities.linear_groups import Block
from compressor.models.quantized.weight_grid import WeightGrid
from passes.awq.config import AwqConfig
from passes.awq.linear_layers import get_linear
from passes.awq.sensitivity import SiteSensitivity, allocate_bits, round_site


@torch.inference_mode()
def choose_grids(
    module: nn.Module,
    blocks: Sequence[Block],
    config: AwqConfig,
    fixed: Collection[str],
    run: Callable[[], Sequence[Tensor]],
) -> dict[str, WeightGrid]:
    """Return the grid of each linear layer, by its name in the model.

    The model runs once for each site and candidate grid, with the site rounded to nearest.

    Args:
        module: the float model; its weights are changed and restored.
        blocks: sites of the linear layers that are quantized.
        config: with `effective_bits`.
        fixed: linear layers whose grids are stated; they do not count.
        run: returns the outputs for a calibration batch.

    Raises:
        RequirementError: the cheapest grids take more than `effective_bits`.
    """
    expected, sensitivities, names, weights = run(), [], [], 0
    for number, block in enumerate(blocks):
        layer = module.get_submodule(block.name)
        for site in block.sites:
            full_names = [block.full(name) for name in site.linears]
            if full_names[0] in fixed:
                continue
            stored = {name: get_linear(layer, name).weight.data for name in site.linears}
            weights += sum(weight_OI.numel() for weight_OI in stored.values())
            bits, loss = {}, {}
            for grid in config.grids:
                bits[grid] = round_site(layer, site, grid)
                loss[grid] = _change(run(), expected)
                for name, weight_OI in stored.items():
                    get_linear(layer, name).weight.data = weight_OI
            names.append(full_names)
            sensitivities.append(SiteSensitivity(number, site.name, bits, loss))
    assert config.effective_bits is not None  # noqa: S101 - the caller has looked
    _check_budget(config.effective_bits, sensitivities, weights)
    chosen = allocate_bits(sensitivities, config.effective_bits * weights)
    return {name: grid for linears, grid in zip(names, chosen, strict=True) for name in linears}


def _check_budget(requested: float, sites: Sequence[SiteSensitivity], weights: int) -> None:
    least = sum(min(site.bits.values()) for site in sites) / max(weights, 1)
    if requested < least:
        raise RequirementError(
            f"`effective_bits`: {requested} is less than the {least:.3f} that the fewest bits take",
            remedy="increase `effective_bits` or `group_size`",
        )


def _change(outputs: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """Return the sum over the outputs of their squared change, relative to their square."""
    return sum(
        float((value - before).square().mean() / before.square().mean().clamp(min=1e-30))
        for value, before in zip(outputs, expected, strict=True)
    )


def valid_outputs(
    result: Mapping[str, Tensor], names: Sequence[str], inputs: Mapping[str, Tensor]
) -> list[Tensor]:
    """Return outputs by name in float32, those of tokens without padding."""
    mask = inputs.get("attention_mask")
    values = [result[name].float() for name in names]
    return [
        value[mask.bool()] if mask is not None and value.shape[:2] == mask.shape else value
        for value in values
    ]
