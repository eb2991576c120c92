"""Linear groups discovered from a module: linear layers that read the same tensor are a site.

No name of an architecture is needed. Blocks are the layers of repeated stacks; linear layers
outside of them are sites of the whole model. The sources of scales are found by trying
(``scale_sources.py``), and so is what each site completes.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from copy import deepcopy
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from compressor.models.capabilities.block_stacks import find_stack_members
from compressor.models.capabilities.linear_groups import Block, LinearGroups, Site
from compressor.models.capabilities.observed_calls import (
    Call,
    ObservedRun,
    RunBlock,
    float_tensors,
    observe_calls,
    tensor_key,
    tensors_in,
)
from compressor.models.capabilities.scale_sources import SourceFinder

KnownSites = dict[str, tuple[Site, ...]]
"""Description of a layer's structure to its sites."""
_SAME_SUM = 1e-5
"""Largest difference of a residual stream from the sum that it should be, relative to its size."""


@torch.no_grad()
def discover_linear_groups(module: nn.Module, batch: Mapping[str, Tensor]) -> LinearGroups | None:
    """Return the linear groups of a module; None if its ``forward`` calls no linear layer.

    Args:
        module: float32, in eval mode.
        batch: inputs, of which the first sample is used.
    """
    run = partial(module, **_first_sample(batch))
    observed = observe_calls(module, run)
    members = find_stack_members(module, observed)
    order: dict[str, int] = {}
    for call in observed.calls:
        order.setdefault(call.name, len(order))
    finder, placed, known = SourceFinder(module, run, observed), [], KnownSites()
    for site in find_sites(observed):
        if not _is_inside(site.linears[0], members):
            found = replace(site, source=finder.find(site))
            placed.append((order[site.linears[0]], Block("", (found,))))
    for name, arguments in _first_arguments(module, members, run).items():
        layer = module.get_submodule(name)
        sites = discover_sites(layer, _run_again(layer, arguments), known)
        if sites:
            placed.append((order[f"{name}.{sites[0].linears[0]}"], Block(name, sites)))
    blocks = [block for _, block in sorted(placed, key=lambda item: item[0])]
    return LinearGroups(tuple(blocks)) if blocks else None


def discover_sites(
    block: nn.Module, run: RunBlock, known: KnownSites | None = None
) -> tuple[Site, ...]:
    """Return the sites of a block in the order of computation, with verified sources.

    Args:
        block: float32, in eval mode.
        run: runs a batch through the block; equal calls give equal results.
        known: sites by the structure of blocks seen before. They are verified, which takes two
            runs, instead of searched for; those of this block are added.
    """
    observed = observe_calls(block, run)
    finder, found = SourceFinder(block, run, observed), find_sites(observed)
    structure = _structure(block)
    if known is not None and structure in known:
        candidates = known[structure]
        same = [site.linears for site in candidates] == [site.linears for site in found]
        if same and finder.is_unchanged(*candidates):
            return candidates
    sites = tuple(replace(site, source=finder.find(site)) for site in found)
    if known is not None:
        known.setdefault(structure, sites)
    return sites


@torch.no_grad()
def keep_verified_sources(
    block: nn.Module, run: RunBlock, sites: tuple[Site, ...]
) -> tuple[Site, ...]:
    """Return the sites without the sources whose folding changes the output of the block."""
    folding = [site for site in sites if site.source is not None]
    finder = SourceFinder(block, run, ObservedRun((), run()))
    if not folding or finder.is_unchanged(*folding):
        return sites
    return tuple(
        site if site.source is None or finder.is_unchanged(site) else replace(site, source=None)
        for site in sites
    )


def find_sites(observed: ObservedRun) -> list[Site]:
    """Return the sites of a run in the order of their calls, without sources."""
    keys: dict[str, list[Any]] = {}
    for call in observed.calls:
        if call.is_linear:
            keys.setdefault(call.name, []).append(call.input_key)
    groups: dict[tuple[Any, ...], list[str]] = {}
    for name, inputs in keys.items():
        groups.setdefault(tuple(inputs), []).append(name)
    return [_with_result(observed, tuple(linears)) for linears in groups.values()]


def _with_result(observed: ObservedRun, linears: tuple[str, ...]) -> Site:
    """Return a site with the module that its only linear layer completes, and its stream."""
    site = Site(linears[0], linears)
    calls = [call for call in observed.calls if call.name == linears[0]]
    if len(linears) > 1 or len(calls) > 1:
        return site
    (call,) = calls
    completed = call
    for outer in observed.calls[observed.calls.index(call) + 1 :]:
        if outer.name and linears[0].startswith(f"{outer.name}.") and _returns(outer, call):
            completed = outer
    stream = _stream(observed, call)
    if completed is call and stream is None:
        return site
    return replace(
        site,
        block=completed.name,
        stream=stream,
        with_weights=isinstance(completed.output, tuple),
    )


def _returns(outer: Call, linear: Call) -> bool:
    """Return True if a module returns a linear layer's result, alone or before None."""
    if outer.output_key != linear.output_key:
        return False
    output = outer.output
    if isinstance(output, Tensor):
        return bool(output.shape == linear.output.shape)
    is_pair = type(output) is tuple and len(output) == 2 and output[1] is None
    return is_pair and output[0].shape == linear.output.shape


def _stream(observed: ObservedRun, linear: Call) -> str | None:
    """Return the module whose input is the residual stream that a result is added to unchanged.

    The sum is what a later module reads first, or the block's result.
    """
    if not linear.is_unwritten:
        return None
    position = observed.calls.index(linear)
    later = [call.input for call in observed.calls[position + 1 :]]
    sums = [*later, *float_tensors(observed.result)[:1]]
    for call in reversed(observed.calls[:position]):
        stream = call.input
        if (
            stream is None
            or not call.name
            or not stream.is_floating_point()
            or stream.shape != linear.output.shape
            or linear.name.startswith(f"{call.name}.")
            or tensor_key(stream) != call.input_key
        ):
            continue
        expected = stream + linear.output
        tolerance = _SAME_SUM * float(expected.abs().max())
        if any(
            value is not None
            and value.shape == expected.shape
            and bool((value - expected).abs().max() <= tolerance)
            for value in sums
        ):
            return call.name
    return None


def _structure(block: nn.Module) -> str:
    """Return a text that is equal for blocks that compute the same with other weights."""
    shapes = {name: list(value.shape) for name, value in block.named_parameters()}
    return f"{block!r} {shapes}"


def _first_sample(batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the inputs of the first sample alone."""
    samples = {value.shape[0] for value in batch.values() if value.ndim}
    if len(samples) != 1:
        return dict(batch)
    return {name: value[:1] if value.ndim else value for name, value in batch.items()}


def _is_inside(name: str, members: Collection[str]) -> bool:
    return any(name.startswith(f"{member}.") for member in members)


Arguments = tuple[tuple[Any, ...], dict[str, Any]]


def _first_arguments(
    module: nn.Module, members: Collection[str], run: RunBlock
) -> dict[str, Arguments]:
    """Return the arguments of the first call of each member."""
    arguments: dict[str, Arguments] = {}
    handles = []

    def hook(name: str) -> Callable[..., None]:
        def record(_: nn.Module, args: Any, kwargs: Any) -> None:
            copies = {id(value): value.clone() for value in tensors_in((args, kwargs))}
            arguments.setdefault(name, _map_tensors((args, kwargs), copies))

        return record

    for name in members:
        submodule = module.get_submodule(name)
        handles.append(submodule.register_forward_pre_hook(hook(name), with_kwargs=True))
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
    return arguments


def _map_tensors(value: Any, copies: Mapping[int, Tensor]) -> Any:
    """Return nested arguments with every tensor replaced by its copy, and objects copied."""
    if isinstance(value, Tensor):
        return copies.get(id(value), value)
    if type(value) is dict:
        return {key: _map_tensors(entry, copies) for key, entry in value.items()}
    if type(value) in {tuple, list}:
        return type(value)(_map_tensors(entry, copies) for entry in value)
    if value is None or isinstance(value, bool | int | float | str | nn.Module):
        return value
    return deepcopy(value)


def _run_again(layer: nn.Module, arguments: Arguments) -> RunBlock:
    """Return what runs a layer on its arguments, each time with the same state of caches."""

    def run() -> Any:
        args, kwargs = _map_tensors(arguments, {})
        return layer(*args, **kwargs)

    return run
