"""Config fields without effect: the plan names each of them, and no field that has an effect."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from compressor.artifacts.store import Store
from compressor.config import discovery
from compressor.data.contract import SourceContext
from compressor.engine.plan.capabilities import is_alias
from compressor.engine.plan.pipeline import load_pipeline
from compressor.engine.plan.planner import make_plan
from compressor.errors import ConfigError
from tests.support.cli import cli

CASES = yaml.safe_load(Path(__file__).with_name("inapplicable_fields.yaml").read_text())
ALL_FIELDS_APPLY = {"delta", "export-gguf", "export-mnn", "export-ort"}
"""Passes whose fields have an effect with every model that they take."""
DATA_SETS = ("train", "validation", "calibration", "test")
SUBJECT = re.compile(r"(?:^|; |\n\s+)`([\w.]+)`")
"""Field that a problem is about, at the start of a line or clause of its message."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pipelines")
    (folder / "samples.py").write_text("# never run: of these sets, a plan knows nothing\n")
    return folder


def step(pass_name: str, fields: dict[str, Any], **header: str) -> dict[str, Any]:
    """Return a step with fields by their paths."""
    tree: dict[str, Any] = {"type": pass_name, **header}
    for path, value in fields.items():
        *parents, name = path.split(".")
        record = tree
        for parent in parents:
            record = record.setdefault(parent, {})
        record[name] = value
    return tree


def write_pipeline(folder: Path, model: str, *steps: dict[str, Any]) -> Path:
    """Write a pipeline for a model, given by its family and its preset."""
    family, preset = model.split()
    tree = {
        "version": 1,
        "name": "fields",
        "model": {"family": family, "preset": preset},
        "data": {name: {"source": "python", "path": "samples.py"} for name in DATA_SETS},
        "passes": steps,
    }
    file = folder / "pipeline.yaml"
    file.write_text(json.dumps(tree))
    return file


def refused_fields(file: Path) -> list[tuple[int, str]]:
    """Plan a pipeline; return the step and the path of each field that a problem is about."""
    with pytest.raises(ConfigError) as caught:
        pipeline = load_pipeline(file)
        make_plan(
            pipeline, Store(file.parent / "store"), SourceContext(pipeline.base, allow_code=True)
        )
    fields = []
    for problem in caught.value.problems:
        place = re.fullmatch(r"passes\[(\d+)\]\.?(.*)", problem.where)
        assert place is not None, problem
        record = f"{place[2]}." if place[2] else ""
        fields += [(int(place[1]), record + name) for name in SUBJECT.findall(problem.what)]
    return sorted(fields)


def test_every_pass_of_this_project_has_a_case() -> None:
    passes = {
        name: discovery.load(discovery.PASSES, name) for name in discovery.names(discovery.PASSES)
    }
    own = {name for name, pass_ in passes.items() if type(pass_).__module__.startswith("passes.")}
    cases = {case["pass"] for case in CASES}
    assert {name for name in own if not is_alias(name)} == cases | ALL_FIELDS_APPLY


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case['pass']} {case['model']}")
@settings(max_examples=10, deadline=None)
@given(data=st.data())
def test_the_plan_names_exactly_the_fields_without_effect(
    case: dict[str, Any], folder: Path, data: st.DataObject
) -> None:
    wrong = data.draw(st.sets(st.sampled_from(sorted(case["without_effect"])), min_size=1))
    right = data.draw(st.sets(st.sampled_from(sorted(case["with_effect"]))))
    fields = dict(case.get("fixed", {}))
    fields |= {name: case["with_effect"][name] for name in sorted(right)}
    fields |= {name: case["without_effect"][name] for name in sorted(wrong)}
    reads_onnx = case["pass"] in {"tensorrt", "optimize-onnx"}
    before = [step("export-onnx", {})] if reads_onnx else []
    file = write_pipeline(folder, case["model"], *before, step(case["pass"], fields))
    assert refused_fields(file) == [(len(before), name) for name in sorted(wrong)]


def test_fields_of_two_steps_are_refused_together_with_exit_code_2(folder: Path) -> None:
    first = step("train", {"training.batch_norm": "freeze"})
    second = step("export-onnx", {"opset": 18, "decoder.target": "portable"})
    file = write_pipeline(folder, "transformers tiny-llama", first, second)
    assert refused_fields(file) == [(0, "training.batch_norm"), (1, "opset")]
    process = cli("plan", file, "--allow-code")
    assert process.returncode == 2
    assert "2 problems" in process.stderr
    assert "`training.batch_norm`: " in process.stderr
    assert "`opset`: " in process.stderr


def test_fields_without_effect_beside_others_are_refused_in_all_steps(folder: Path) -> None:
    first = step("train", {"training.patience": 3})
    second = step("qat", {"calibration": {"data": "test", "percentile": 99.0}})
    file = write_pipeline(folder, "image-classifier tiny", first, second)
    assert refused_fields(file) == [(0, "training.patience"), (1, "calibration.percentile")]
