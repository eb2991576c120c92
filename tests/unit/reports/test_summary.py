"""What a CI job shows, what the pages read beside manifests, and records that older versions left."""

import json
from pathlib import Path

import pytest

from compressor.artifacts.runs import GateResult, RunRecord, load_run
from compressor.errors import DamagedArtifactError
from compressor.reports.pages.summary import VARIABLE, summarize_run
from compressor.reports.rows import facts
from compressor.reports.rows.run import RunReport
from tests.support.reports import phone_run

GATE = GateResult(
    gate="top1 min 0.9", step="onnx", metric="top1", passed=False, reason="onnx has no top1"
)


def test_the_ladder_and_the_gates_are_appended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = RunReport("phone", phone_run(tmp_path), [GATE], "run")
    monkeypatch.delenv(VARIABLE, raising=False)
    summarize_run(report)
    monkeypatch.setenv(VARIABLE, str(tmp_path / "summary.md"))
    (tmp_path / "summary.md").write_text("before\n")
    summarize_run(report)
    text = (tmp_path / "summary.md").read_text()
    assert text.startswith("before\n## phone\n\n| step |")
    assert "| top1 min 0.9 | onnx |" in text


def test_a_summary_that_cannot_be_written_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from compressor.errors import StorageError

    monkeypatch.setenv(VARIABLE, str(tmp_path / "none" / "summary.md"))
    with pytest.raises(StorageError):
        summarize_run(RunReport("phone", phone_run(tmp_path), [GATE], "run"))


@pytest.mark.parametrize(
    "content", ["", "[]", '{"tensors": {"x": {}}}', '{"tensors": {"x": {"values": "many"}}}']
)
def test_a_damaged_calibration_table(tmp_path: Path, content: str) -> None:
    assert facts.calibration(tmp_path) == []
    (tmp_path / "calibration.json").write_text(content)
    with pytest.raises(DamagedArtifactError, match=r"calibration\.json is no calibration table"):
        facts.calibration(tmp_path)


def test_the_most_clipped_are_shown_in_their_order() -> None:
    rows = [
        facts.Range(str(at), 1, -1.0, 10.0, bound) for at, bound in enumerate([10.0, 2.0, 5.0, 1.0])
    ]
    assert [row.tensor for row in facts.most_clipped(rows, 2)] == ["1", "3"]


def test_a_record_from_before_gates_had_intervals_is_read(tmp_path: Path) -> None:
    old = {
        "gate": "g",
        "step": "s",
        "metric": "m",
        "value": 1.0,
        "limit": 2.0,
        "passed": True,
        "reason": "1 ≤ 2",
    }
    record = {"pipeline": "p", "command": "c", "steps": [], "gates": [old]}
    (tmp_path / "run.json").write_text(json.dumps(record))
    (gate,) = load_run(tmp_path).gates
    assert gate.verdict == "passed"
    again = RunRecord.model_validate_json(
        RunRecord(pipeline="p", command="c", steps=(), gates=(gate,)).model_dump_json()
    )
    assert again.gates == (gate,)
