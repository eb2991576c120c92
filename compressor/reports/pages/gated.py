"""What `gate` leaves behind for a CI system."""

from __future__ import annotations

from pathlib import Path

from compressor.artifacts.errors_from_os import writing
from compressor.artifacts.files import write_atomic
from compressor.engine.gates.check import Gated
from compressor.reports.pages.junit import gates_junit
from compressor.reports.pages.summary import summarize_gates


def record_gates(gated: Gated, junit: Path | None) -> None:
    """The step summary where the job has one, and JUnit XML where it is asked for."""
    name = f"{gated.run} against {gated.baseline}"
    summarize_gates(name, gated.gates)
    if junit is not None:
        with writing(junit):
            write_atomic(junit, gates_junit(name, gated.gates).encode())
