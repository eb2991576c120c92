"""Modules as their config describes them: built, resized, and called by name."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import nn
from torch.nn.parameter import is_lazy

from compressor.errors import ModelError
from compressor.models.families.module.config import ModuleConfig
from compressor.models.families.module.interface import adapt
from compressor.models.families.module.libraries import LIBRARIES
from compressor.models.families.module.programs import build_program
from compressor.models.families.module.resizing import resize
from compressor.models.families.module.source_code import call_function

_NUMPY_SEEDS = 2**32
_COMPILED = "_orig_mod"
"""Name of the module in the one that ``torch.compile`` returns."""


def build_module(config: ModuleConfig) -> nn.Module:
    """Return the module, whose ``forward`` takes the inputs by name and returns a dict.

    Raises:
        UsageError: the module is built by code, which is not allowed.
        ModelError: it cannot be built.
        MissingExtraError: its library is not installed.
    """
    return adapt(build_original(config), config.input_names, config.output_paths, config.call)


def build_original(config: ModuleConfig) -> nn.Module:
    """Return the module with the ``forward`` of its author; errors as ``build_module``.

    The fused operators of ``nn.MultiheadAttention`` and ``nn.TransformerEncoderLayer`` are switched
    off for the process: they read the weights of layers without calling them, so that those would
    be neither counted nor observed, and a quantized layer would be skipped.
    """
    torch.backends.mha.set_fastpath_enabled(False)
    with _seeded():
        return resize(_build(config), config.sizes)


@contextmanager
def _seeded() -> Iterator[None]:
    """Seed the generators of Python and NumPy as torch is seeded, and restore them afterwards."""
    seed, states = torch.initial_seed(), (random.getstate(), np.random.get_state())
    try:
        random.seed(seed)
        np.random.seed(seed % _NUMPY_SEEDS)
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])


def _build(config: ModuleConfig) -> nn.Module:
    if config.program is not None:
        return build_program(config.program)
    if config.python is None:
        library, model = LIBRARIES[config.builder], config.title
        return library.create(model, config.arguments)
    module = call_function(config.code, config.python, config.arguments)
    if isinstance(module, torch.jit.ScriptModule):
        raise ModelError(
            f"{config.python} returns TorchScript, which has no Python code to trace",
            remedy="return the module that it was scripted from",
        )
    if not isinstance(module, nn.Module):
        raise ModelError(
            f"{config.python} returns {type(module).__name__}, not a torch.nn.Module",
            remedy="return the module: `def build(): return MyModule()`",
        )
    module = _unwrapped(module)
    if lazy := [name for name, value in module.named_parameters() if is_lazy(value)]:
        raise ModelError(
            f"{config.python} returns a module with uninitialized parameters: {', '.join(lazy)}",
            remedy="call the module once before it is returned, or state the sizes of its layers",
        )
    return module


def _unwrapped(module: nn.Module) -> nn.Module:
    """Return a module without the wrappers of ``torch.compile`` and ``DataParallel``."""
    for name, child in list(module.named_children()):
        setattr(module, name, _unwrapped(child))
    if isinstance(module, nn.DataParallel):
        wrapped: nn.Module = module.module
        return wrapped
    inner = module._modules.get(_COMPILED)
    return module if inner is None else inner
