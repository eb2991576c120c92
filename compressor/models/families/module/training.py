"""Trial of a module in training mode, in which other code may run than in evaluation mode."""

from __future__ import annotations

import warnings
from functools import lru_cache

import torch

from compressor.errors import CompressError, ModelError
from compressor.models.families.module.building import build_original
from compressor.models.families.module.config import ModuleConfig
from compressor.models.families.module.interface import forward_of, invoke, pick_trained
from compressor.models.families.module.probing import example_inputs
from compressor.models.families.module.source_code import describe_error

_KEPT = 16
"""Configs whose outcome is kept in memory."""


@lru_cache(maxsize=_KEPT)
def training_failure(config_json: str) -> str | None:
    """Return why a module does not run in training mode; None if it does.

    Values are computed only if it does not run without them, on the device ``meta``.

    Args:
        config_json: a complete config, as JSON.

    Raises:
        CompressError: the module cannot be built.
    """
    config = ModuleConfig.model_validate_json(config_json)
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of constructors, about arguments and initialization
        try:
            _run(config, "meta")
        except Exception:  # noqa: BLE001  the CPU gives the reason, if it fails as well
            return _failure_on_cpu(config)
    return None


def _failure_on_cpu(config: ModuleConfig) -> str | None:
    try:
        _run(config, "cpu")
    except ModelError as error:
        return error.what
    except CompressError:
        raise
    except Exception as error:  # noqa: BLE001  the user's ``forward`` may raise anything
        return f"in training mode `forward` fails: {describe_error(error)}"
    return None


@torch.no_grad()
def _run(config: ModuleConfig, device: str) -> None:
    """Call the module in training mode, and pick its outputs."""
    with torch.device(device):
        module = build_original(config).train()
    tensors = example_inputs(config, device=device)
    returned = invoke(forward_of(module), module, tensors, config.input_names, config.call)
    for path in config.output_paths.values():
        pick_trained(returned, path)
