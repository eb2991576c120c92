"""Write the report files of an artifact, of a run, and of the command `gate`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from pydantic import BaseModel

from compressor.artifacts.artifact import MODEL
from compressor.artifacts.errors_from_os import writing
from compressor.artifacts.files import write_atomic
from compressor.artifacts.manifest import Manifest
from compressor.artifacts.run_folders import LADDER
from compressor.artifacts.runs import GAINS, SAMPLES, GateResult, read_run_file
from compressor.engine.gates.measured_model import ACCURACY_FILE, samples_of
from compressor.errors import CompressError
from compressor.evaluation.records import Measurement
from compressor.reports.pages.html import artifact_html, run_html
from compressor.reports.pages.junit import gates_junit, run_junit
from compressor.reports.pages.markdown import artifact_markdown, run_markdown
from compressor.reports.pages.step_summary import summarize_gates
from compressor.reports.rows import model_files
from compressor.reports.rows.run import RunReport

MARKDOWN, HTML = "report.md", "report.html"
_DIGEST_WITHIN = 400
"""A page holds its digest within this many characters from its start."""


def write_artifact_reports(
    folder: Path, manifest: Manifest, measurement: Measurement | None, *, command: str
) -> None:
    """Write ``reports/*.json``, ``report.md`` and ``report.html`` into a staged artifact.

    Args:
        folder: The artifact's staging folder; the model is already in it.
        manifest: The artifact's manifest. Its fields ``reports`` and ``digest`` are not shown:
            they depend on the files written here.
        measurement: What was measured, if anything.
        command: The command line that reproduces the artifact.
    """
    if measurement is not None:
        if measurement.accuracy is not None:
            _write(folder / ACCURACY_FILE, _json(measurement.accuracy))
        if measurement.latency is not None:
            _write(folder / model_files.LATENCY_FILE, _json(measurement.latency))
        if measurement.generation is not None:
            _write(folder / model_files.GENERATION_FILE, _json(measurement.generation))
    content = (manifest, measurement, command, folder / MODEL)
    _write(folder / MARKDOWN, artifact_markdown(*content))
    _write(folder / HTML, artifact_html(*content))


def write_run_reports(folder: Path, report: RunReport, recorded: Path) -> bool:
    """Write a run's ladder, samples, gates, gains, JUnit XML and its two pages.

    Args:
        folder: An empty folder.
        report: The run.
        recorded: The run's folder. Its pages are taken over if they show the same content.

    Returns:
        True if the pages were rendered.
    """
    _write(folder / LADDER, _json(report.ladder))
    gates = [gate.model_dump(mode="json") for gate in report.gates]
    _write(folder / "gates.json", json.dumps(gates, indent=1))
    _write(folder / "junit.xml", run_junit(report))
    samples = {
        step.step: samples.model_dump()
        for step in report.steps
        if (samples := samples_of(step.artifact)) is not None
    }
    _write(folder / SAMPLES, json.dumps(samples, separators=(",", ":")))
    if report.gains:
        gains = [gain.model_dump(mode="json") for gain in report.gains]
        _write(folder / GAINS, json.dumps(gains, indent=1))
    digest = report.digest()
    pages = _current_pages(recorded, digest)
    rendered = pages or (run_markdown(report).encode(), run_html(report, recorded, digest).encode())
    for name, page in zip((MARKDOWN, HTML), rendered, strict=True):
        with writing(folder / name):
            write_atomic(folder / name, page)
    return pages is None


def _current_pages(folder: Path, digest: str) -> tuple[bytes, bytes] | None:
    """Return the pages of a recorded run if they are intact and show this content, else None."""
    try:
        markdown, html = (read_run_file(folder, name) for name in (MARKDOWN, HTML))
    except CompressError:
        return None
    if markdown is None or html is None or digest.encode() not in html[:_DIGEST_WITHIN]:
        return None
    return markdown, html


def write_gate_reports(title: str, results: Sequence[GateResult], junit_xml: Path | None) -> None:
    """Append gate results to the CI job's summary; write JUnit XML if a path is given."""
    summarize_gates(title, results)
    if junit_xml is not None:
        _write(junit_xml, gates_junit(title, results))


def _json(record: BaseModel) -> str:
    return record.model_dump_json(indent=1)


def _write(path: Path, text: str) -> None:
    with writing(path):
        write_atomic(path, text.encode())
