"""Repeated stacks of layers in a module: lists of members that are called in turn."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

from torch import nn

from compressor.models.capabilities.observed_calls import ObservedRun


def find_stack_members(module: nn.Module, observed: ObservedRun) -> tuple[str, ...]:
    """Return the names of the layers of all stacks, in the order of their first calls.

    A stack is a list of modules with linear layers inside, all of one class or each reading what
    the one before returned. Where its members hold such chains themselves, as the stages of a
    hierarchical model do, the layers of the chains are returned.

    Args:
        module: the whole model.
        observed: a run of it.
    """
    called: dict[str, int] = {}
    for call in observed.calls:
        called.setdefault(call.name, len(called))
    names = [name for name in _members(module, "", observed) if name in called]
    return tuple(sorted(names, key=called.__getitem__))


def _members(module: nn.Module, prefix: str, observed: ObservedRun) -> Iterator[str]:
    for name, child in module.named_children():
        full = f"{prefix}{name}"
        if not _is_stack(child, full, observed):
            yield from _members(child, f"{full}.", observed)
            continue
        for number, member in child.named_children():
            inner = [
                name
                for name in _members(member, f"{full}.{number}.", observed)
                if type(module.get_submodule(name.removeprefix(prefix))) is not type(member)
            ]
            is_chain = len(inner) > 1 and _is_chain(inner, observed)
            yield from inner if is_chain else [f"{full}.{number}"]


def _is_stack(module: nn.Module, name: str, observed: ObservedRun) -> bool:
    members = list(module.children())
    if not isinstance(module, nn.ModuleList | nn.Sequential) or not members:
        return False
    if not all(map(_has_linear, members)):
        return False
    if len({type(member) for member in members}) == 1:
        return len(members) > 1 or isinstance(module, nn.ModuleList)
    return _is_chain([f"{name}.{number}" for number, _ in module.named_children()], observed)


def _has_linear(module: nn.Module) -> bool:
    return any(isinstance(child, nn.Linear) for child in list(module.modules())[1:])


def _is_chain(names: list[str], observed: ObservedRun) -> bool:
    """Return True if every module but the first reads what the one before returned."""
    first_calls = {call.name: call for call in reversed(observed.calls)}
    calls = [first_calls[name] for name in names if name in first_calls]
    return len(calls) == len(names) and all(
        after.input_key is not None and after.input_key == before.output_key
        for before, after in pairwise(calls)
    )
