from pathlib import Path

import pytest

from compressor.errors import StorageError
from compressor.reports.pages.step_summary import VARIABLE, summarize_run
from compressor.reports.pages.write import write_gate_reports
from tests.support.reports import gate_result, run_report


def test_the_ladder_and_the_gates_are_appended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = run_report(tmp_path, gates=[gate_result()])
    monkeypatch.delenv(VARIABLE, raising=False)
    summarize_run(report)
    monkeypatch.setenv(VARIABLE, str(tmp_path / "summary.md"))
    (tmp_path / "summary.md").write_text("before\n")
    summarize_run(report)
    text = (tmp_path / "summary.md").read_text()
    assert text.startswith("before\n## phone\n\n| deliverable |")
    assert "| step |" in text
    assert "| ✗ | top-1 of onnx must be at least 90.0 %" in text


def test_a_summary_that_cannot_be_written_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, str(tmp_path / "none" / "summary.md"))
    with pytest.raises(StorageError):
        summarize_run(run_report(tmp_path))


def test_gates_are_appended_and_written_as_junit_xml(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, str(tmp_path / "summary.md"))
    write_gate_reports("run against baseline", [gate_result()], tmp_path / "gates.xml")
    assert "## run against baseline" in (tmp_path / "summary.md").read_text()
    assert 'name="run against baseline"' in (tmp_path / "gates.xml").read_text()
