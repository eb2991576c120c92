"""Puts reports where the design says: an artifact's before it is published, a run's in its record."""

from __future__ import annotations

import json
from pathlib import Path

from pydantic import BaseModel

from compressor.artifacts.errors_from_os import writing
from compressor.artifacts.files import write_atomic
from compressor.artifacts.manifest import Manifest
from compressor.artifacts.store import MODEL
from compressor.engine.gates.metrics import LADDER, SAMPLES, samples_of
from compressor.evaluation.records import Measurement
from compressor.reports.pages.junit import run_junit
from compressor.reports.rows import facts
from compressor.reports.rows.run import RunReport

PAGES = ("report.md", "report.html")
_DIGEST_WITHIN = 400  # characters: the digest stands in the first lines of a page


def write_artifact_reports(
    folder: Path, manifest: Manifest, measurement: Measurement | None, *, command: str
) -> None:
    """Write ``reports/*.json``, ``report.md`` and ``report.html`` into a staged artifact.

    Of ``manifest`` everything but ``reports`` and ``digest`` is shown: those answer to what is written here.
    ``command`` is what makes the artifact again.
    """
    from compressor.reports.pages.html import artifact_html
    from compressor.reports.pages.markdown import artifact_markdown

    if measurement is not None:
        if measurement.accuracy is not None:
            _write(folder / facts.ACCURACY_FILE, _json(measurement.accuracy))
        if measurement.latency is not None:
            _write(folder / facts.LATENCY_FILE, _json(measurement.latency))
    _write(folder / "report.md", artifact_markdown(manifest, measurement, command, folder / MODEL))
    _write(folder / "report.html", artifact_html(manifest, measurement, command, folder / MODEL))


def write_run_reports(folder: Path, report: RunReport) -> bool:
    """Write ladder, samples, gates and JUnit XML and, unless they already tell the same, the two pages.

    Returns whether the pages were drawn.
    """
    _write(folder / LADDER, _json(report.ladder))
    _write(
        folder / "gates.json",
        json.dumps([gate.model_dump(mode="json") for gate in report.gates], indent=1),
    )
    _write(folder / "junit.xml", run_junit(report))
    kept = {
        step.step: found
        for step in report.steps
        if (found := samples_of(step.artifact)) is not None
    }
    _write(
        folder / SAMPLES,
        json.dumps({step: one.model_dump() for step, one in kept.items()}, separators=(",", ":")),
    )
    digest = report.digest()
    if pages_tell(folder, digest):
        return False
    from compressor.reports.pages.html import run_html
    from compressor.reports.pages.markdown import run_markdown

    _write(folder / "report.md", run_markdown(report))
    _write(folder / "report.html", run_html(report, folder, digest))
    return True


def pages_tell(folder: Path, digest: str) -> bool:
    """Whether the pages in ``folder`` were drawn from what has this digest."""
    if not all((folder / name).is_file() for name in PAGES):
        return False
    with (folder / "report.html").open(encoding="utf-8") as file:
        return digest in file.read(_DIGEST_WITHIN)


def _json(record: BaseModel) -> str:
    return record.model_dump_json(indent=1)


def _write(path: Path, text: str) -> None:
    with writing(path):
        write_atomic(path, text.encode())
