"""Facts about a module that follow from building it and calling it once."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from compressor.errors import CompressError, ModelError
from compressor.models.capabilities.flop_counting import count_flops
from compressor.models.families.module.building import build_original
from compressor.models.families.module.config import (
    Counts,
    InputConfig,
    ModuleConfig,
    Output,
    OutputPath,
)
from compressor.models.families.module.interface import (
    Call,
    call_style,
    forward_of,
    invoke,
    named_outputs,
    pick,
    tensors_in,
)
from compressor.models.families.module.source_code import describe_error

_BATCH = 2
_KEPT = 16
"""Configs whose counts are kept in memory."""
_ROOT = "module"
"""Name of the parameters that belong to no child."""
WantedOutputs = Sequence[str] | Mapping[str, OutputPath] | None


@dataclass(frozen=True, slots=True)
class Probe:
    """A module that was built and called, without values where that is possible."""

    module: nn.Module
    call: Call
    outputs: dict[str, OutputPath]
    counts: Counts


def complete(config: ModuleConfig, outputs: WantedOutputs) -> ModuleConfig:
    """Return a config with the call, the outputs and the counts of the module.

    Args:
        config: how the module is built, and its inputs.
        outputs: names of the outputs; see ``named_outputs``.

    Raises:
        UsageError: the module is built by code, which is not allowed.
        ModelError: it cannot be built, or does not run with the inputs.
    """
    probe = probe_module(config, outputs)
    places = tuple(Output(name=name, path=path) for name, path in probe.outputs.items())
    found = config.model_copy(update={"call": probe.call, "outputs": places})
    return found.model_copy(update={"counts": probe.counts.model_copy(update={"of": found.digest})})


def counted(config: ModuleConfig) -> ModuleConfig:
    """Return a config with outputs and with the counts of its module; errors as ``complete``."""
    counts = config.counts
    if config.outputs and counts is not None and counts.of == config.digest:
        return config
    return _completed(config.model_copy(update={"counts": None}).model_dump_json())


@lru_cache(maxsize=_KEPT)
def _completed(config_json: str) -> ModuleConfig:
    config = ModuleConfig.model_validate_json(config_json)
    return complete(config, config.output_paths or None)


def probe_module(config: ModuleConfig, outputs: WantedOutputs) -> Probe:
    """Build a module and call it; errors as ``complete``.

    Where the module cannot be built or called on the device ``meta``, which holds no values, both
    are done on the CPU.
    """
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of constructors, about arguments and initialization
        try:
            return _probe(config, outputs, "meta")
        except Exception:  # noqa: BLE001  the CPU gives the reason, if it fails as well
            return _probe_on_cpu(config, outputs)


def unfilled_module(config: ModuleConfig) -> nn.Module:
    """Return the module, on the device ``meta`` where that is possible; errors as ``complete``."""
    return probe_module(config, config.output_paths).module


def _probe_on_cpu(config: ModuleConfig, outputs: WantedOutputs) -> Probe:
    try:
        return _probe(config, outputs, "cpu")
    except CompressError:
        raise
    except Exception as error:  # the user's ``forward`` may raise anything
        shapes = ", ".join(
            f"{spec.name} {list(spec.probed_shape(_BATCH))}" for spec in config.inputs
        )
        raise ModelError(
            f"{config.title}: `forward` failed with {shapes}: {describe_error(error)}",
            remedy=_remedy(str(error)),
        ) from error


def _remedy(message: str) -> str:
    """Return the remedy for what a ``forward`` raised."""
    if "torchvision" in message and "custom C++ ops" in message:
        return (
            "the library of torchvision does not load beside this torch: install the build of "
            "torchvision for it, or wrap the part before the postprocessing of a detector in a "
            "module of yours (`python:`)"
        )
    if "CUDA" in message:
        return "create tensors on the device of the inputs (`x.device`) in place of a GPU"
    return "correct `inputs`; `example` sets the sizes that dimensions are tried with"


def _probe(config: ModuleConfig, outputs: WantedOutputs, device: str) -> Probe:
    with torch.device(device):
        module = build_original(config).eval()
    call = call_style(module, config.input_names)
    returned = _run(module, config, call, _BATCH, device)
    named = named_outputs(returned, outputs)
    with count_flops(module) as counter:
        alone = _run(module, config, call, 1, device)
    _check_samples(returned, alone, named)
    units = 1 if config.unit == "sample" else _tokens(config)
    counts = Counts(
        of="",
        parameters=_parameters(module),
        macs=counter.get_total_flops() // 2 // units,
        classes=pick(returned, named["logits"]).shape[-1] if "logits" in named else None,
    )
    return Probe(module, call, named, counts)


def _check_samples(batch: Any, alone: Any, outputs: Mapping[str, OutputPath]) -> None:
    """Check that each output is one tensor, whose first dimension is the sample.

    Args:
        batch: what ``forward`` returned for several samples.
        alone: what it returned for one.
        outputs: outputs by name, with their places.
    """
    if {path for path, _ in tensors_in(batch)} != {path for path, _ in tensors_in(alone)}:
        raise ModelError(
            "`forward` returns another number of tensors for one sample than for several, such as "
            "a list with a dict for each sample",
            remedy="return tensors of [batch, …] in evaluation mode, as before the postprocessing "
            "of a detector: wrap it in a module of yours (`python:`)",
        )
    shapes = {
        name: (list(pick(batch, path).shape), list(pick(alone, path).shape))
        for name, path in outputs.items()
    }
    wrong = {name: both for name, both in shapes.items() if not _is_of_samples(*both)}
    if wrong:
        lines = (f"{name} {both[0]} for {_BATCH} samples" for name, both in wrong.items())
        raise ModelError(
            "the first dimension of every output is the sample; `forward` returns "
            + ", ".join(lines),
            remedy="name the other outputs in `outputs`, or return these with the sample first",
        )


def _is_of_samples(batch: list[int], alone: list[int]) -> bool:
    """Return True if the first dimension is that of the samples, or a multiple of it."""
    return bool(batch and alone) and batch[0] == _BATCH * alone[0] and batch[1:] == alone[1:]


@torch.no_grad()
def _run(module: nn.Module, config: ModuleConfig, call: Call, batch: int, device: str) -> Any:
    tensors = example_inputs(config, batch, device)
    return invoke(forward_of(module), module, tensors, config.input_names, call)


def example_inputs(
    config: ModuleConfig, batch: int = _BATCH, device: str = "cpu"
) -> dict[str, Tensor]:
    """Return inputs of the sizes that dimensions are tried with."""
    return {spec.name: _example(spec, batch, device) for spec in config.inputs}


def _example(spec: InputConfig, batch: int, device: str) -> Tensor:
    """Return zeros, or ones for floats and masks."""
    shape, dtype = spec.probed_shape(batch), getattr(torch, spec.dtype)
    if dtype.is_floating_point or spec.below is None:
        return torch.ones(shape, dtype=dtype, device=device)
    return torch.zeros(shape, dtype=dtype, device=device)


def _tokens(config: ModuleConfig) -> int:
    """Return the number of tokens of one probed sample."""
    spec = next((spec for spec in config.inputs if spec.dimensions), None)
    if spec is None:
        raise ModelError(
            "`unit: token` counts a dimension that varies, and `inputs` names none",
            remedy="name the dimension of the tokens, as in [batch, tokens]; or set `unit: sample`",
        )
    sizes = zip(spec.shape, spec.probed_shape(1), strict=True)
    return math.prod(size for name, size in sizes if isinstance(name, str))


def _parameters(module: nn.Module) -> dict[str, int]:
    """Return the parameters by child module, tied ones once."""
    counts: dict[str, int] = {}
    for name, parameter in module.named_parameters():
        part = name.partition(".")[0] if "." in name else _ROOT
        counts[part] = counts.get(part, 0) + parameter.numel()
    return counts
