"""Files of weights for a module: safetensors, or a pickled state dict that is read safely."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
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
_COUNTER = "num_batches_tracked"
"""Counter of a batch norm, which older files lack and only averages without momentum need."""


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

    A prefix of all names, as wrappers add, may differ; counters of batch norms may be missing.

    Raises:
        ModelError: they do not; the message names every tensor.
    """
    problems: list[str] = []
    expected = module.state_dict(keep_vars=True)
    stored = _with_prefix_of(expected, stored)
    present = {id(value) for name, value in expected.items() if name in stored}
    for name, target in expected.items():
        value = stored.get(name)
        if value is None:
            is_tied = id(target) in present
            if not is_tied and not name.endswith(_COUNTER):
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
    module.load_state_dict(_with_prefix_of(module.state_dict(), stored), strict=False)
    return module


def _with_prefix_of(
    expected: Mapping[str, Tensor], stored: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Return stored tensors with the prefix of the expected names, if no name fits as it is."""
    if not stored or not stored.keys().isdisjoint(expected):
        return dict(stored)
    old, new = _common_prefix(stored), _common_prefix(expected)
    if not f".{old}".endswith(f".{new}") and not f".{new}".endswith(f".{old}"):
        return dict(stored)
    return {new + name.removeprefix(old): value for name, value in stored.items()}


def _common_prefix(names: Iterable[str]) -> str:
    """Return the modules that all names begin with, such as ``model.encoder.``."""
    owners = [name.split(".")[:-1] for name in names]
    shared = itertools.takewhile(lambda parts: len({*parts}) == 1, zip(*owners, strict=False))
    return "".join(f"{parts[0]}." for parts in shared)


def _is_float(value: Tensor) -> bool:
    return value.is_floating_point()


def _describe(value: Tensor) -> str:
    return f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}"
