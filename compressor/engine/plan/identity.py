"""Ids of artifacts: digests of everything that can change their bytes."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compressor.artifacts.fingerprint import digest_json, digest_tree
from compressor.config.document import Location
from compressor.config.validation import references
from compressor.engine.contract import Pass
from compressor.engine.machine import tool_version
from compressor.engine.plan.plan import Recipe
from compressor.evaluation.measure import evaluation_digest
from compressor.evaluation.records import EvaluateConfig


@dataclass(frozen=True, slots=True)
class BuildSettings:
    """Settings of a run that can change the bytes of every artifact."""

    seed: int
    threads: int
    device: str


def compute_id(
    recipe: Recipe,
    config: Mapping[str, Any],
    inputs: Mapping[str, str],
    settings: BuildSettings,
) -> str:
    """Return the id of an artifact.

    Args:
        recipe: pass, versions of its code and tools, and digests of its data sets.
        config: the config with ids in place of the names of steps and data sets.
        inputs: role to id of the artifacts that the pass reads.
        settings: settings of the run.
    """
    return digest_json(
        {
            "pass": [recipe.pass_name, recipe.pass_version, recipe.code],
            "config": config,
            "inputs": inputs,
            "data": sorted(recipe.data.values()),
            "tools": recipe.tools,
            "seed": settings.seed,
            "threads": settings.threads,
            "device": settings.device,
        }
    )


def tool_versions(tools: tuple[str, ...]) -> dict[str, str]:
    """Return the installed version of each Python distribution."""
    return {tool: tool_version(tool) for tool in tools}


def replace_value(tree: Any, location: Location, value: str) -> None:
    """Replace the value at a location, in place."""
    for part in location[:-1]:
        tree = tree[part]
    tree[location[-1]] = value


def third_party_digest(pass_: Pass[Any]) -> str | None:
    """Return the sha256 of a third-party pass's package; None for passes of this project."""
    module = sys.modules[type(pass_).__module__]
    if module.__name__.split(".")[0] == "passes" or module.__file__ is None:
        return None
    return digest_tree(Path(module.__file__).parent, "*.py")


def measurement_digest(
    evaluate: EvaluateConfig, reference_id: str | None, digest_of: Callable[[str], str]
) -> str:
    """Return a digest of measurement settings, the data sets that they name, and the reference.

    Args:
        evaluate: what is measured.
        reference_id: id of the artifact that is compared with; None for none.
        digest_of: returns the digest of a data set.
    """
    names = {value for _, reference, value in references(evaluate) if reference.to == "data"}
    digests = {name: digest_of(name) for name in sorted(names)}
    return evaluation_digest(evaluate, digests, reference_id)
