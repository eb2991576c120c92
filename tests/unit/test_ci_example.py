"""The CI workflow in examples/ci: its commands parse, its baseline is complete, its hook works."""

import json
import re
import shlex
from pathlib import Path

import pytest
import typer
import yaml

from cli import app
from compressor.engine.gates.baseline import parse_limit
from compressor.engine.gates.measured_model import measured_models_at
from tests.support.cli import cli

ROOT = Path(__file__).parents[2]
WORKFLOW = yaml.safe_load((ROOT / "examples/ci/workflow.yml").read_text())
COMMANDS = [
    step["run"]
    for step in WORKFLOW["jobs"]["compress"]["steps"]
    if step.get("run", "").startswith("autoglm-compress")
]


@pytest.mark.parametrize("line", COMMANDS)
def test_every_command_of_the_workflow_parses(line: str) -> None:
    _, name, *arguments = shlex.split(line)
    command = typer.main.get_command(app).commands[name]
    values = command.make_context(name, list(arguments)).params
    for limit in values.get("limits") or ():
        parse_limit(limit)
    assert all((ROOT / path).exists() for path in arguments if path.startswith("examples/"))


def test_the_baseline_has_metrics_and_the_value_of_each_sample() -> None:
    models = measured_models_at(ROOT / "examples/ci/baseline")
    assert {"teacher", "pruned", "int8-onnx", "engine-int8"} <= models.keys()
    for name in ("int8-onnx", "engine-int8"):
        samples = models[name].samples
        assert samples is not None
        assert len(samples.values["top1"]) == models[name].metrics["top1"].samples
        assert sum(samples.values["top1"]) / len(samples.values["top1"]) == pytest.approx(
            models[name].metrics["top1"].value
        )


def test_the_hook_checks_several_files_and_names_every_problem(toy_pipeline: Path) -> None:
    (hook,) = yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text())
    assert hook["entry"] == "autoglm-compress validate"
    assert re.search(hook["files"], "examples/phone/pipeline.yaml")
    second = toy_pipeline.with_name("pipeline-2.yaml")
    second.write_text(toy_pipeline.read_text())
    done = cli("validate", toy_pipeline, second, "--json")
    assert json.loads(done.stdout) == {
        str(file): ["source", "first", "second"] for file in (toy_pipeline, second)
    }
    for file in (toy_pipeline, second):
        file.write_text(file.read_text().replace("rounds: 3", "roundz: 3"))
    invalid = cli("validate", toy_pipeline, second)
    assert invalid.returncode == 2
    assert "2 problems" in invalid.stderr
