import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest

from compressor.artifacts.runs import RunRecord, save_run
from compressor.artifacts.store import Store
from compressor.evaluation.records import AccuracyReport, LatencyReport
from compressor.reports.pages.write import write_artifact_reports, write_run_reports
from compressor.reports.rows.ladder import Ladder
from compressor.reports.rows.run import RunReport
from tests.support.reports import gate_result, manifest, measurement, run_report

RECORD = RunRecord(pipeline="phone", command="run", steps=(), gates=())


def report(tmp_path: Path) -> RunReport:
    gate = gate_result(gate="g", passed=True, reason="1 ≥ 1")
    return run_report(tmp_path / "store", gates=[gate], command="run")


def test_an_artifact_gets_pages_and_raw_measurements(tmp_path: Path) -> None:
    measured = measurement()
    student = manifest(metrics=measured.metrics)
    write_artifact_reports(tmp_path, student, measured, command="run")
    accuracy = (tmp_path / "reports/accuracy.json").read_bytes()
    latency = (tmp_path / "reports/latency.json").read_bytes()
    assert AccuracyReport.model_validate_json(accuracy) == measured.accuracy
    assert LatencyReport.model_validate_json(latency) == measured.latency
    assert {path.name for path in tmp_path.iterdir()} == {"reports", "report.md", "report.html"}


def test_an_unmeasured_artifact_gets_only_pages(tmp_path: Path) -> None:
    write_artifact_reports(tmp_path, manifest(), None, command="run")
    assert {path.name for path in tmp_path.iterdir()} == {"report.md", "report.html"}


def test_pages_do_not_depend_on_the_manifest_s_list_of_reports(tmp_path: Path) -> None:
    bare = manifest()
    listed = bare.model_copy(update={"reports": bare.files, "digest": "0" * 64})
    write_artifact_reports(tmp_path / "a", bare, None, command="run")
    write_artifact_reports(tmp_path / "b", listed, None, command="run")
    for name in ("report.md", "report.html"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_a_run_gets_pages_and_json_files(tmp_path: Path) -> None:
    run = report(tmp_path)
    assert write_run_reports(tmp_path / "run", run, tmp_path / "none")
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


def record(root: Path, run: RunReport) -> Path:
    """Record a run in a store, and return its folder."""
    with save_run(Store(root), RECORD) as (folder, staged):
        write_run_reports(staged, run, folder)
    return folder


def test_pages_with_the_same_content_are_not_rendered_again(tmp_path: Path) -> None:
    run = report(tmp_path)
    folder = record(tmp_path / "store", run)
    again = dataclasses.replace(
        run, steps=[dataclasses.replace(step, cached=True) for step in run.steps]
    )
    assert not write_run_reports(tmp_path / "new", again, folder)
    assert '"cached": false' not in (tmp_path / "new/ladder.json").read_text()
    for name in ("report.md", "report.html"):
        assert (tmp_path / "new" / name).read_bytes() == (folder / name).read_bytes()


@pytest.mark.parametrize(
    "change", ["command", "gates", "notes", "manifest", "missing", "damaged page", "damaged record"]
)
def test_pages_are_rendered_again_when_something_changed(tmp_path: Path, change: str) -> None:
    full = report(tmp_path)
    run = dataclasses.replace(full, steps=full.steps[:1])
    folder = record(tmp_path / "store", run)
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
    }.get(change, run)
    if change == "missing":
        (folder / "report.md").unlink()
    elif change.startswith("damaged"):
        file = folder / ("report.md" if change == "damaged page" else "run.json")
        file.write_bytes(file.read_bytes().replace(b"o", b"0", 1))
    assert write_run_reports(tmp_path / "new", changed, folder)


def test_an_unchanged_run_loads_neither_matplotlib_nor_jinja(tmp_path: Path) -> None:
    run, store = str(record(tmp_path / "runs", report(tmp_path))), str(tmp_path / "store")
    code = (
        "import shutil, sys\n"
        "from pathlib import Path\n"
        "from compressor.reports.pages.write import write_run_reports\n"
        "from tests.support.reports import gate_result, run_report\n"
        f"shutil.rmtree({store!r})\n"
        "gate = gate_result(gate='g', passed=True, reason='1 ≥ 1')\n"
        f"report = run_report(Path({store!r}), gates=[gate], command='run')\n"
        f"assert not write_run_reports(Path({str(tmp_path / 'new')!r}), report, Path({run!r}))\n"
        "heavy = {'matplotlib', 'jinja2', 'torch', 'onnx', 'numpy'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    repository = Path(__file__).parents[4]
    subprocess.run([sys.executable, "-c", code], check=True, cwd=repository)
