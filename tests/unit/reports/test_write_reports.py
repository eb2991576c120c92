import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest

from compressor.artifacts.runs import GateResult
from compressor.errors import DamagedArtifactError
from compressor.evaluation.records import AccuracyReport, LatencyReport
from compressor.reports.pages.write import write_artifact_reports, write_run_reports
from compressor.reports.rows import facts
from compressor.reports.rows.ladder import Ladder
from compressor.reports.rows.run import RunReport
from tests.support.reports import manifest, measurement, phone_run


def report(tmp_path: Path) -> RunReport:
    return RunReport(
        "phone",
        phone_run(tmp_path / "store"),
        [GateResult(gate="g", step="onnx", metric="top1", passed=True, reason="1 ≥ 1")],
        "run",
    )


def test_an_artifact_gets_its_pages_and_the_raw_samples(tmp_path: Path) -> None:
    found = measurement()
    write_artifact_reports(tmp_path, manifest(metrics=found.metrics), found, command="run")
    assert (
        AccuracyReport.model_validate_json((tmp_path / "reports/accuracy.json").read_bytes())
        == found.accuracy
    )
    assert (
        LatencyReport.model_validate_json((tmp_path / "reports/latency.json").read_bytes())
        == found.latency
    )
    assert facts.read_latency(tmp_path) == found.latency
    assert {path.name for path in tmp_path.iterdir()} == {"reports", "report.md", "report.html"}


def test_an_unmeasured_artifact_gets_its_pages_alone(tmp_path: Path) -> None:
    write_artifact_reports(tmp_path, manifest(), None, command="run")
    assert {path.name for path in tmp_path.iterdir()} == {"report.md", "report.html"}


def test_an_artifact_s_pages_do_not_depend_on_the_entries_that_list_them(tmp_path: Path) -> None:
    bare = manifest()
    listed = bare.model_copy(update={"reports": bare.files, "digest": "0" * 64})
    write_artifact_reports(tmp_path / "a", bare, None, command="run")
    write_artifact_reports(tmp_path / "b", listed, None, command="run")
    for name in ("report.md", "report.html"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_a_run_gets_pages_and_twins_for_programs(tmp_path: Path) -> None:
    run = report(tmp_path)
    assert write_run_reports(tmp_path / "run", run)
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert names == {
        "ladder.json",
        "samples.json",
        "gates.json",
        "junit.xml",
        "report.md",
        "report.html",
    }
    assert Ladder.model_validate_json((tmp_path / "run/ladder.json").read_bytes()) == run.ladder
    assert json.loads((tmp_path / "run/gates.json").read_text())[0]["passed"] is True


def test_pages_that_tell_the_same_are_not_drawn_again(tmp_path: Path) -> None:
    run = report(tmp_path)
    write_run_reports(tmp_path / "run", run)
    again = dataclasses.replace(
        run, steps=[dataclasses.replace(step, cached=True) for step in run.steps]
    )
    assert not write_run_reports(tmp_path / "run", again)
    assert '"cached": false' not in (tmp_path / "run/ladder.json").read_text()


@pytest.mark.parametrize("change", ["command", "gates", "notes", "manifest", "missing"])
def test_pages_are_drawn_again_when_something_changed(tmp_path: Path, change: str) -> None:
    full = report(tmp_path)
    run = dataclasses.replace(full, steps=full.steps[:1])
    write_run_reports(tmp_path / "run", run)
    last = run.steps[-1]
    measured = dataclasses.replace(
        last.artifact, manifest=last.artifact.manifest.model_copy(update={"digest": "new"})
    )
    changed = {
        "command": dataclasses.replace(run, command="other"),
        "gates": dataclasses.replace(run, gates=()),
        "notes": dataclasses.replace(run, notes=[("onnx", "a note")]),
        "manifest": dataclasses.replace(
            run, steps=[*run.steps[:-1], dataclasses.replace(last, artifact=measured)]
        ),
        "missing": run,
    }[change]
    if change == "missing":
        (tmp_path / "run/report.md").unlink()
    assert write_run_reports(tmp_path / "run", changed)


def test_a_damaged_latency_report_is_an_error_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "reports").mkdir()
    (tmp_path / "reports/latency.json").write_text("{")
    with pytest.raises(DamagedArtifactError, match=r"latency\.json is damaged"):
        facts.read_latency(tmp_path)


def test_a_run_that_changed_nothing_loads_no_plotting_and_no_templates(tmp_path: Path) -> None:
    write_run_reports(tmp_path / "run", report(tmp_path))
    code = (
        "import sys; from pathlib import Path; from tests.support.reports import *; from tests.unit.reports.test_write_reports import report\n"
        "from compressor.reports.pages.write import write_run_reports\n"
        f"import shutil; shutil.rmtree({str(tmp_path / 'store')!r})\n"
        f"assert not write_run_reports(Path({str(tmp_path / 'run')!r}), report(Path({str(tmp_path)!r})))\n"
        "assert not {'matplotlib', 'jinja2', 'torch', 'onnx', 'numpy'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[3])
