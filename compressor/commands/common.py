"""Steps that several commands share: open pipelines, plan them, print JSON, report gates."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compressor.errors import GateError, UsageError
from compressor.foreign_files.printable import printable_json

if TYPE_CHECKING:
    from compressor.artifacts.runs import GateResult
    from compressor.data.contract import SourceContext
    from compressor.engine.plan.pipeline import Pipeline
    from compressor.engine.plan.plan import Plan

_DEVICES = ("cpu", "cuda")


def print_json(value: Any) -> None:
    """Print a value as JSON to stdout."""
    text = json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False)
    sys.stdout.write(printable_json(text) + "\n")


def open_pipeline(file: Path, overrides: list[str] | None) -> Pipeline:
    """Read a pipeline file and apply ``--set`` overrides.

    Raises:
        ConfigError: The file or an override is not valid.
    """
    from compressor.engine.plan.pipeline import load_pipeline

    return load_pipeline(file, overrides or ())


def open_draft(file: Path, overrides: list[str] | None, allow_code: bool) -> Pipeline:
    """Read a pipeline file to plan or check it, which reports its unknown keys.

    Raises:
        ConfigError: The file or an override is not valid.
    """
    from compressor.engine.plan.pipeline import draft_pipeline

    return draft_pipeline(file, overrides or (), allow_code=allow_code)


def open_optional_pipeline(file: Path | None, overrides: list[str] | None) -> Pipeline | None:
    """Read a pipeline file if one is given; errors as ``open_pipeline``."""
    return open_pipeline(file, overrides) if file is not None else None


def source_context(pipeline: Pipeline | None, allow_code: bool) -> SourceContext:
    """Return the context of data sources: paths are relative to the pipeline file."""
    from compressor.data.contract import SourceContext

    return SourceContext(pipeline.base if pipeline is not None else Path.cwd(), allow_code)


def plan_pipeline(
    pipeline: Pipeline, output_dir: Path, seed: int | None, device: str, allow_code: bool
) -> Plan:
    """Plan a pipeline on a store.

    Raises:
        UsageError: The device is unknown, or this machine does not have it.
        ConfigError: The pipeline has problems; all of them are listed.
    """
    from compressor.artifacts.store import Store
    from compressor.engine.device import check_device
    from compressor.engine.plan.planner import make_plan

    if device not in _DEVICES:
        raise UsageError(f"unknown device {device!r}", remedy=f"choose {' or '.join(_DEVICES)}")
    check_device(device)
    context = source_context(pipeline, allow_code)
    return make_plan(pipeline, Store(output_dir), context, seed=seed, device=device)


def require_passed(gates: Sequence[GateResult]) -> None:
    """Check that every gate passed.

    Raises:
        GateError: At least one gate failed; the message lists all of them.
    """
    failed = [gate for gate in gates if not gate.passed]
    if failed:
        raise GateError("\n".join(f"{gate.step}: {gate.gate}: {gate.reason}" for gate in failed))
