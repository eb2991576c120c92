"""Modules with an adapter in them, through the library PEFT, which is imported where it is used."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compressor.errors import MissingExtraError, ModelError
from compressor.foreign_files.json_files import read_json_object
from compressor.foreign_files.libraries import library_errors
from compressor.models.adapters.layout import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    NAME_PREFIX,
)

if TYPE_CHECKING:
    from torch import Tensor, nn

_ADAPTER = "default"
_AGAIN = "copy the adapter again, or train it again"
_LISTED = 10
"""Problems that a message lists."""


def check_peft(needed_for: str) -> None:
    """Check that PEFT is installed.

    Raises:
        MissingExtraError: it is not.
    """
    if find_spec("peft") is None:
        raise MissingExtraError("peft", needed_for, "lora")


def add_adapter(module: nn.Module, adapter: Path) -> nn.Module:
    """Add the adapter of a folder to a module in place, and return the module in eval mode.

    Raises:
        ModelError: a file is damaged, or tensors are missing, unexpected or of another shape.
    """
    from peft import PeftConfig, inject_adapter_in_model

    read_json_object(adapter / ADAPTER_CONFIG, ModelError, remedy=_AGAIN)
    with library_errors(adapter / ADAPTER_CONFIG, ModelError, _AGAIN):
        config = PeftConfig.from_pretrained(str(adapter))
        config.inference_mode = True
        adapted: nn.Module = inject_adapter_in_model(config, module, _ADAPTER)
    _load(adapted, adapter)
    return adapted.eval().requires_grad_(False)


def adapter_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Return the tensors of the adapter of a module by their names in PEFT's file."""
    from peft import get_peft_model_state_dict

    tensors: dict[str, Tensor] = get_peft_model_state_dict(module, save_embedding_layers=False)
    return {
        f"{NAME_PREFIX}{name}": tensor.detach().cpu().contiguous()
        for name, tensor in sorted(tensors.items())
    }


def _load(module: nn.Module, adapter: Path) -> None:
    from peft import set_peft_model_state_dict
    from safetensors.torch import load_file

    file = adapter / ADAPTER_WEIGHTS
    with library_errors(file, ModelError, _AGAIN):
        stored = load_file(file)
    expected = adapter_tensors(module)
    if problems := _differences(stored, expected):
        raise ModelError(
            f"{file} does not fit {ADAPTER_CONFIG} and the base:\n"
            + "\n".join(f"    {problem}" for problem in problems[:_LISTED]),
            remedy=_AGAIN,
        )
    set_peft_model_state_dict(
        module, {name.removeprefix(NAME_PREFIX): tensor for name, tensor in stored.items()}
    )


def _differences(stored: dict[str, Any], expected: dict[str, Any]) -> list[str]:
    """Return the tensors that are missing, unexpected, or of another shape."""
    problems = [f"{name} is missing" for name in expected if name not in stored]
    problems += [f"{name} belongs to no target module" for name in stored if name not in expected]
    return problems + [
        f"{name} is {list(stored[name].shape)}, expected {list(tensor.shape)}"
        for name, tensor in expected.items()
        if name in stored and stored[name].shape != tensor.shape
    ]
