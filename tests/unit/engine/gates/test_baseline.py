"""Tests of `gate RUN --against BASELINE`, on runs of a pipeline that measures only sizes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from compressor.engine.gates.baseline import parse_limit
from compressor.engine.gates.measured_model import measured_models_at
from compressor.errors import DamagedArtifactError, UsageError
from tests.support.cli import cli
from tests.support.tiny_files import tiny_onnx

PIPELINE = """
version: 1
name: toy
model: {path: model}
passes:
  - {type: toy, name: first}
  - {type: toy, name: second, rounds: 3}
"""


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of two runs; the artifacts differ in bytes, not in size."""
    home = tmp_path_factory.mktemp("built")
    (home / "model").mkdir()
    (home / "model" / "model.onnx").write_bytes(tiny_onnx())
    (home / "pipeline.yaml").write_text(PIPELINE)
    assert cli("run", home / "pipeline.yaml", "-o", home / "old").returncode == 0
    assert (
        cli(
            "run", home / "pipeline.yaml", "-o", home / "new", "--set", "passes[0].rounds=4"
        ).returncode
        == 0
    )
    return home


@pytest.fixture
def two_runs(built: Path, tmp_path: Path) -> Path:
    return shutil.copytree(built, tmp_path / "home")


def test_a_baseline_may_be_a_run_a_store_an_artifact_or_a_ladder(two_runs: Path) -> None:
    run = next((two_runs / "old" / "runs").iterdir())
    artifact = next((two_runs / "old").glob("toy-*"))
    shutil.copy(run / "ladder.json", two_runs / "baseline.json")
    for baseline in (run, run / "run.json", two_runs / "old", artifact, two_runs / "baseline.json"):
        process = cli("gate", two_runs / "new", "--against", baseline, "--json")
        assert process.returncode == 0, process.stderr
        assert {gate["verdict"] for gate in json.loads(process.stdout)} == {"passed"}
    shutil.rmtree(two_runs / "old", ignore_errors=False)
    assert cli("gate", two_runs / "new", "--against", two_runs / "old").returncode == 2


def test_a_failed_limit_exits_with_3_and_writes_a_table_and_junit(
    two_runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(two_runs / "summary.md"))
    process = cli(
        "gate",
        two_runs / "new",
        "--against",
        two_runs / "old",
        "--limit",
        "size_bytes:max_ratio=0.5",
        "--junit",
        two_runs / "gates.xml",
    )
    assert process.returncode == 3
    assert "Traceback" not in process.stderr
    assert "×1" in process.stdout
    assert "may be at most ×0.5 of baseline" in process.stdout
    suite = ET.parse(two_runs / "gates.xml").getroot()
    assert suite.attrib["failures"] == suite.attrib["tests"] == "3"
    assert "| ✗ | size of first may be at most ×0.5" in (two_runs / "summary.md").read_text()


def test_the_gates_of_a_pipeline_are_checked_against_the_baseline(two_runs: Path) -> None:
    file = two_runs / "gated.yaml"
    gates = (
        "gates:\n  - {metric: size_bytes, max_ratio: 0.9, step: first, against: ./old}\n"
        "  - {metric: size_bytes, max_ratio: 0.1, against: source}\n"
    )
    file.write_text((two_runs / "pipeline.yaml").read_text() + gates)
    process = cli("gate", two_runs / "new", "--against", two_runs / "old", "-p", file, "--json")
    assert process.returncode == 3
    (gate,) = json.loads(process.stdout)
    assert (gate["step"], gate["gate"]) == ("first", "size_bytes max_ratio 0.9 against baseline")


def test_a_pipeline_gate_may_name_a_baseline_by_its_path(two_runs: Path) -> None:
    file = two_runs / "gated.yaml"
    text = (two_runs / "pipeline.yaml").read_text()
    file.write_text(text + "gates:\n  - {metric: size_bytes, max_ratio: 0.5, against: ./old}\n")
    process = cli("run", file, "-o", two_runs / "new")
    assert process.returncode == 3
    assert "size_bytes max_ratio 0.5 against ./old" in process.stderr
    file.write_text(text + "gates:\n  - {metric: size_bytes, max_ratio: 0.5, against: ./none}\n")
    missing = cli("run", file, "-o", two_runs / "new")
    assert missing.returncode == 2
    assert "gates[0].against" in missing.stderr
    assert "does not exist" in missing.stderr


@pytest.mark.parametrize(
    "text",
    ["top1", "top1:max_drop", "top1:max_drop=much", ":min=1", "top1:least=1", "top1:min=nan"],
)
def test_malformed_limits_are_errors(text: str) -> None:
    with pytest.raises(UsageError, match="expected METRIC:BOUND=NUMBER"):
        parse_limit(text)


def test_a_ladder_has_the_values_of_each_sample(tmp_path: Path) -> None:
    row = {"step": "onnx", "id": "1", "metrics": {}}
    (tmp_path / "ladder.json").write_text(json.dumps({"rows": [row]}))
    assert measured_models_at(tmp_path)["onnx"].samples is None
    (tmp_path / "samples.json").write_text(
        json.dumps({"onnx": {"of": "x", "values": {"top1": [1, 0, 1]}}})
    )
    samples = measured_models_at(tmp_path / "ladder.json")["onnx"].samples
    assert samples is not None
    assert samples.values["top1"] == (1, 0, 1)
    (tmp_path / "samples.json").write_text("{")
    with pytest.raises(DamagedArtifactError, match=r"samples\.json is damaged"):
        measured_models_at(tmp_path)


def test_a_limit_on_an_unmeasured_metric_is_an_error(two_runs: Path) -> None:
    process = cli(
        "gate", two_runs / "new", "--against", two_runs / "old", "--limit", "top1:min=0.5"
    )
    assert process.returncode == 2
    assert "no limit applies to the metrics" in process.stderr


def test_a_limit_may_name_a_slice() -> None:
    rule = parse_limit("top1[input=speech]:max_drop=0.01")
    assert (rule.metric, rule.bound, rule.limit) == ("top1[input=speech]", "max_drop", 0.01)
