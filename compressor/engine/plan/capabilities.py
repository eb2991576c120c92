"""Passes that a model can go through, and the reasons why the others do not accept it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from pydantic import ValidationError

from compressor.config import discovery
from compressor.engine.contract import Pass, PlanContext, StarterModel
from compressor.errors import CompressError, RequirementError
from compressor.models.attention_patterns.record import ATTENTION_PATTERN
from compressor.models.capabilities.capability import Capability
from compressor.models.facts import ModelFacts
from compressor.models.missing import Missing, missing
from compressor.runtimes.formats import Format, accepts

_CHECKPOINTS = ("torch", "packed")
"""Formats of models that a pattern can be written for."""


@dataclass(frozen=True, slots=True)
class PassSuitability:
    """Suitability of one pass for one model."""

    pass_name: str
    reasons: tuple[str, ...] = ()
    """Reasons why the pass does not accept the model; empty if it does."""
    remedies: tuple[str, ...] = ()
    """Ways to a model that the pass accepts."""


def missing_capabilities(facts: ModelFacts, needs: Sequence[type[Capability]]) -> list[Missing]:
    """Return the capabilities that a model lacks; none where its architecture is not known yet."""
    architecture = facts.architecture()
    return [] if architecture is None else missing(architecture, needs)


def pattern_refusal(pass_: Pass[Any], facts: ModelFacts) -> RequirementError | None:
    """Return the error if a pass would drop the attention pattern of a model; None otherwise."""
    if not facts.attention_pattern or pass_.keeps_attention_pattern:
        return None
    follows = f"let `sparse-attention` follow {pass_.name}, or "
    return RequirementError(
        f"{pass_.name} does not keep the attention pattern of its parent "
        f"({ATTENTION_PATTERN}): heads that attend to a window would attend to all tokens again",
        remedy=(follows if pass_.produces in _CHECKPOINTS else "")
        + f"give {pass_.name} a model without the pattern, such as the one that "
        "`sparse-attention` starts from",
    )


def suitable_passes(format_: Format, model: StarterModel) -> list[PassSuitability]:
    """Return the suitability of every installed pass, with the fields of a first pipeline."""
    passes = installed_passes()
    answers = {pass_.name: _answer(pass_, format_, model) for pass_ in passes}
    ready = [pass_ for pass_ in passes if not answers[pass_.name].reasons]
    return [
        answers[pass_.name]
        if accepts(pass_.accepts, format_.name)
        else replace(answers[pass_.name], remedies=_preparation(pass_, format_, ready))
        for pass_ in passes
    ]


def unsuitable_passes(format_name: str | None, remedy: str | None) -> list[PassSuitability]:
    """Return every installed pass for a model that none of them can read.

    Args:
        format_name: the model's format, where it only cannot be opened; None for a foreign kind.
        remedy: the remedy, which is the same for every pass.
    """
    remedies = () if remedy is None else (remedy,)
    return [
        PassSuitability(pass_.name, (_unreadable(pass_, format_name),), remedies)
        for pass_ in installed_passes()
    ]


def _unreadable(pass_: Pass[Any], format_name: str | None) -> str:
    if format_name is not None and accepts(pass_.accepts, format_name):
        return "the model cannot be opened"
    return f"reads {' or '.join(sorted(pass_.accepts))}"


def installed_passes() -> list[Pass[Any]]:
    """Return every installed pass once, sorted by name."""
    names = [name for name in discovery.names(discovery.PASSES) if not is_alias(name)]
    return [discovery.load(discovery.PASSES, name) for name in names]


def is_alias(pass_name: str) -> bool:
    """Return True if an entry point is another name of a pass that is registered under its own."""
    return bool(discovery.load(discovery.PASSES, pass_name).name != pass_name)


def _answer(pass_: Pass[Any], format_: Format, model: StarterModel) -> PassSuitability:
    if not accepts(pass_.accepts, format_.name):
        return PassSuitability(pass_.name, (_reads_another(pass_, format_.name),))
    lacking = missing_capabilities(model.facts, pass_.needs(pass_.Config.model_construct()))
    if lacking:
        return PassSuitability(
            pass_.name,
            tuple(f"the model has no {need.label}" for need in lacking),
            tuple(need.remedy for need in lacking),
        )
    if (refusal := pattern_refusal(pass_, model.facts)) is not None:
        return PassSuitability(pass_.name, (refusal.what,), (str(refusal.remedy),))
    return _refusal(pass_, format_.name, model)


def _reads_another(pass_: Pass[Any], name: str) -> str:
    return f"reads {' or '.join(sorted(pass_.accepts))}, not {name}"


def _preparation(pass_: Pass[Any], format_: Format, ready: Sequence[Pass[Any]]) -> tuple[str, ...]:
    """Return the way from a format that a pass does not read to one that it reads."""
    leading = [
        other.name
        for other in ready
        if accepts(pass_.accepts, other.produces) and not other.keeps_format
    ]
    if leading:
        return (f"run {' or '.join(leading)} first",)
    way = format_.default_remedy or (
        f"start from the {' or '.join(sorted(pass_.accepts))} model that it was made from"
    )
    return (way,)


def _refusal(pass_: Pass[Any], format_name: str, model: StarterModel) -> PassSuitability:
    """Return the reason if the pass refuses the model with the fields of a first pipeline."""
    try:
        config = pass_.Config.model_validate_json(json.dumps(dict(pass_.starter_fields(model))))
        context = PlanContext({"parent": model.facts}, formats={"parent": format_name})
        pass_.estimate(config, model.facts, context)
    except ValidationError:  # the pass has required fields that only the user can set
        return PassSuitability(pass_.name)
    except CompressError as error:
        remedies = () if error.remedy is None else (error.remedy,)
        return PassSuitability(pass_.name, (error.what,), remedies)
    return PassSuitability(pass_.name)
