"""Passes that a model can go through, and the capabilities it lacks for the others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from compressor.config import discovery
from compressor.engine.contract import Pass, PlanContext
from compressor.errors import CompressError, GpuError
from compressor.models.capabilities.capability import Capability
from compressor.models.facts import ModelFacts
from compressor.models.missing import Missing, missing
from compressor.runtimes.formats import Format, accepts


@dataclass(frozen=True, slots=True)
class PassSuitability:
    """The answer for one pass and one model."""

    pass_name: str
    reasons: tuple[str, ...]
    """Everything that stands against the pass; empty if the model can go through."""


def missing_capabilities(facts: ModelFacts, needs: Sequence[type[Capability]]) -> list[Missing]:
    """Return the capabilities that a model lacks; none where its architecture is not known yet."""
    architecture = facts.architecture()
    return [] if architecture is None else missing(architecture, needs)


def suitable_passes(format_: Format, facts: ModelFacts) -> list[PassSuitability]:
    """Return every installed pass with what stands against it, at its default configuration."""
    names = [name for name in discovery.names(discovery.PASSES) if not is_alias(name)]
    passes = (discovery.load(discovery.PASSES, name) for name in names)
    return [PassSuitability(pass_.name, tuple(_reasons(pass_, format_, facts))) for pass_ in passes]


def is_alias(pass_name: str) -> bool:
    """Return True if an entry point is another name of a pass that is registered under its own."""
    return bool(discovery.load(discovery.PASSES, pass_name).name != pass_name)


def _reasons(pass_: Pass[Any], format_: Format, facts: ModelFacts) -> list[str]:
    if not accepts(pass_.accepts, format_.name):
        return [f"reads {' or '.join(sorted(pass_.accepts))}, not {format_.name}"]
    lacking = missing_capabilities(facts, pass_.needs(pass_.Config.model_construct()))
    reasons = [f"the model has no {need.label}: {need.remedy}" for need in lacking]
    return reasons or _refusals(pass_, facts)


def _refusals(pass_: Pass[Any], facts: ModelFacts) -> list[str]:
    """Return why the pass refuses the model at its default configuration, if it has one."""
    try:
        config = pass_.Config()
    except ValidationError:  # the pass has required fields, and no default configuration
        return []
    try:
        pass_.estimate(config, facts, PlanContext({"parent": facts}))
    except GpuError as error:
        return [error.what]
    except CompressError as error:
        return [error.what if error.remedy is None else f"{error.what}: {error.remedy}"]
    return []
