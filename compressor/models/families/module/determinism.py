"""Check that the saved weights determine what a module computes."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from compressor.errors import ModelError
from compressor.models.checkpoint.loading import load_module
from compressor.models.families.module.building import build_module
from compressor.models.families.module.config import ModuleConfig
from compressor.models.families.module.probing import example_inputs

_SEEDS = (1, 2)


def check_initialization(config: ModuleConfig, folder: Path, seed: int) -> None:
    """Build a saved module again from the same seed, and compare the weights.

    Raises:
        ModelError: they differ.
    """
    saved = load_module(folder).state_dict()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        again = build_module(config).state_dict()
    if differing := [name for name, value in saved.items() if not _is_equal(value, again[name])]:
        raise ModelError(
            f"{config.title} gives other weights each time, whatever the seed: "
            + ", ".join(differing),
            remedy="draw them with torch, NumPy or `random`, whose generators are seeded; or save "
            "them once, and name the file as `weights`",
        )


def check_determinism(config: ModuleConfig, folder: Path) -> None:
    """Load a saved module twice, from different seeds, and compare their outputs.

    Raises:
        ModelError: they differ, or those of one module differ from call to call.
    """
    with torch.random.fork_rng(devices=[]):
        module = _loaded(folder, _SEEDS[0])
        first = _outputs(module, config)
        if differing := _differing(first, _outputs(module, config)):
            raise ModelError(
                f"{config.title}: `forward` returns other values of {differing} when it is called "
                "again with the same inputs: it draws random numbers, or changes its own state",
                remedy="make it deterministic in evaluation mode, and take noise as an input",
            )
        other = _outputs(_loaded(folder, _SEEDS[1]), config)
        if differing := _differing(first, other):
            raise ModelError(
                f"{config.title}: {differing} depends on random values that the module draws when "
                "it is built, and that its state dict does not hold",
                remedy="keep them in a persistent buffer (`register_buffer`), or draw them with a "
                "generator of a fixed seed",
            )


def _loaded(folder: Path, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return load_module(folder)


@torch.no_grad()
def _outputs(module: nn.Module, config: ModuleConfig) -> dict[str, Tensor]:
    outputs: dict[str, Tensor] = module(**example_inputs(config))
    return {name: value.clone() for name, value in outputs.items()}


def _is_equal(first: Tensor, second: Tensor) -> bool:
    return torch.equal(torch.nan_to_num(first), torch.nan_to_num(second))


def _differing(first: dict[str, Tensor], second: dict[str, Tensor]) -> str:
    """Return the names of the outputs that differ."""
    return ", ".join(
        name
        for name, value in first.items()
        if value.shape != second[name].shape
        or not torch.allclose(value, second[name], rtol=1e-4, atol=1e-6, equal_nan=True)
    )
