"""Files of weights for a module: safetensors, or a pickled state dict that is read safely."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from compressor.errors import ModelError
from compressor.foreign_files.opening import file_problem
from compressor.models.checkpoint.pickled import read_state_dict
from compressor.models.checkpoint.safetensors_files import open_tensors
from compressor.models.families.module.programs import load_program

_SUFFIX = ".safetensors"
_PROGRAM = ".pt2"


def read_weights(file: Path) -> tuple[dict[str, Tensor], list[str]]:
    """Return the tensors of a file, whose memory is mapped where possible, and notes.

    Raises:
        ModelError: it is damaged, or holds more than tensors.
    """
    if problem := file_problem(file):
        raise ModelError(problem, remedy="name a .safetensors or .pt file")
    if file.suffix == _PROGRAM:
        return dict(load_program(file, str(file)).state_dict), []
    if file.suffix != _SUFFIX:
        return read_state_dict(file)
    with open_tensors(file) as handle:
        return {name: handle.get_tensor(name) for name in handle.keys()}, []  # noqa: SIM118


def check_weights(module: nn.Module, stored: Mapping[str, Tensor], file: Path) -> None:
    """Check that weights fit a module by name, shape and kind.

    Raises:
        ModelError: they do not; the message names every tensor.
    """
    problems: list[str] = []
    expected = module.state_dict(keep_vars=True)
    present = {id(value) for name, value in expected.items() if name in stored}
    for name, target in expected.items():
        value = stored.get(name)
        if value is None:
            if id(target) not in present:  # not tied to one that is there
                problems.append(f"missing: {name} {_describe(target)}")
        elif value.shape != target.shape or _is_float(value) != _is_float(target):
            problems.append(
                f"{name}: {_describe(value)} in the file, {_describe(target)} in the module"
            )
    problems += [
        f"unexpected: {name} {_describe(value)}"
        for name, value in stored.items()
        if name not in expected
    ]
    if problems:
        raise ModelError(
            f"{file} does not hold the weights of the module:\n"
            + "\n".join(f"    {problem}" for problem in problems),
            remedy="build the module as it was when the weights were saved, or leave `weights` out",
        )


@torch.no_grad()
def set_weights(module: nn.Module, stored: Mapping[str, Tensor]) -> nn.Module:
    """Copy weights that ``check_weights`` accepted into a module, in the module's dtypes."""
    module.load_state_dict(dict(stored), strict=False)
    return module


def _is_float(value: Tensor) -> bool:
    return value.is_floating_point()


def _describe(value: Tensor) -> str:
    return f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}"
