"""Target modules of an adapter: the names that PEFT would match, checked before training."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from math import lcm
from typing import TYPE_CHECKING

from compressor.models.architecture import Architecture
from passes.common.field_problems import FieldProblem
from passes.lora.config import ALL_LINEAR, LoraConfig

if TYPE_CHECKING:
    from torch import nn

FIELD = "target_modules"
_LISTED = 12
"""Names of modules that a message lists."""


@dataclass(frozen=True, slots=True)
class Targets:
    """Resolved ``target_modules`` and ``feedforward_modules``."""

    names: tuple[str, ...] | str
    feedforward: tuple[str, ...] = ()


def resolve_targets(config: LoraConfig, model_type: str | None) -> Targets | None:
    """Return the targets of a config; None where PEFT has no default for the model type."""
    if config.target_modules is not None:
        return Targets(config.target_modules, config.feedforward_modules or ())
    from peft.utils import constants

    if model_type is None:
        return None
    if config.peft_type == "LORA":
        targets = constants.TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING.get(model_type)
        return None if targets is None else Targets(tuple(targets))
    targets = constants.TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING.get(model_type)
    inner = constants.TRANSFORMERS_MODELS_TO_IA3_FEEDFORWARD_MODULES_MAPPING.get(model_type)
    return None if targets is None else Targets(tuple(targets), tuple(inner or ()))


def model_type_of(architecture: Architecture) -> str | None:
    """Return the model type of a checkpoint of transformers; None for other families."""
    tree = architecture.config.model_dump(mode="json")
    model_type = tree.get("model_type")
    return str(model_type) if model_type is not None else None


def target_problems(config: LoraConfig, architecture: Architecture) -> list[FieldProblem]:
    """Return the targets that match no module with a matrix, or grouped convolutions PEFT refuses.

    Each comes with the names that exist, or the ranks that fit.
    """
    from passes.common.unweighted import build_without_values

    module = build_without_values(architecture)[0]
    names = adaptable_modules(module)
    model_type = model_type_of(architecture)
    targets = resolve_targets(config, model_type)
    if targets is None:
        kind = architecture.family.name if model_type is None else f"the model type {model_type}"
        return [FieldProblem(FIELD, f"PEFT has no default for {kind}", _name_some(names))]
    problems = [
        FieldProblem(FIELD, f"{pattern!r} matches no linear layer of the model", _name_some(names))
        for pattern in unmatched(targets.names, names)
    ]
    return problems + ([] if config.peft_type == "IA3" else _group_problems(config, module, names))


def _group_problems(config: LoraConfig, module: nn.Module, names: list[str]) -> list[FieldProblem]:
    """Return the targets that match grouped convolutions whose groups do not divide the rank."""
    targets = config.target_modules
    if targets is None or targets == ALL_LINEAR:
        return []
    groups = {name: getattr(module.get_submodule(name), "groups", 1) for name in names}
    problems = []
    for pattern in (targets,) if isinstance(targets, str) else targets:
        single = pattern if isinstance(targets, str) else (pattern,)
        matched = sorted({n for name, n in groups.items() if not unmatched(single, [name])})
        if misfits := [str(count) for count in matched if config.r % count]:
            reason = f"{pattern!r} matches convolutions of {', '.join(misfits)} groups, which do"
            remedy = f"leave it out, or set `r` to a multiple of {lcm(*matched)}"
            problems.append(FieldProblem(FIELD, f"{reason} not divide `r: {config.r}`", remedy))
    return problems


def adaptable_modules(module: nn.Module) -> list[str]:
    """Return the paths of the linear layers and convolutions, in the order of the module."""
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    kinds = (nn.Linear, nn.Conv1d, nn.Conv2d, Conv1D)
    return [name for name, part in module.named_modules() if isinstance(part, kinds)]


def unmatched(targets: tuple[str, ...] | str, names: Iterable[str]) -> list[str]:
    """Return the targets that match none of the names, by PEFT's rules."""
    names = list(names)
    if targets == ALL_LINEAR:
        return [] if names else [ALL_LINEAR]
    if isinstance(targets, str):
        return [] if any(re.fullmatch(targets, name) for name in names) else [targets]
    return [
        target
        for target in targets
        if not any(name == target or name.endswith(f".{target}") for name in names)
    ]


def _name_some(names: list[str]) -> str:
    """Return a remedy with the ends of the names that exist, the most frequent first."""
    ends = Counter(name.rpartition(".")[2] for name in names)
    shown = [end if not end.isdigit() else name for name, end in _with_ends(names, ends)]
    listed = list(dict.fromkeys(shown))
    more = ", …" if listed[_LISTED:] else ""
    return f"name some of {', '.join(listed[:_LISTED])}{more}"


def _with_ends(names: list[str], ends: Counter[str]) -> list[tuple[str, str]]:
    pairs = [(name, name.rpartition(".")[2]) for name in names]
    return sorted(pairs, key=lambda pair: -ends[pair[1]])
