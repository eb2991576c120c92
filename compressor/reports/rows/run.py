"""The content of a run's report in one record, and the digest that identifies it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from compressor.artifacts.fingerprint import digest_json, digest_tree
from compressor.artifacts.gain_report import Gain
from compressor.artifacts.runs import GateResult
from compressor.reports.rows import artifact
from compressor.reports.rows.deliverables import Deliverable, find_deliverables
from compressor.reports.rows.ladder import Ladder, LadderInput, build_ladder

_SOURCES = ("*.py", "*.j2", "*.css")
"""Files of this package that shape a page."""


@dataclass(frozen=True)
class RunReport:
    """One run of one pipeline."""

    pipeline: str
    steps: Sequence[LadderInput]
    gates: Sequence[GateResult]
    command: str
    """The command line that reproduces the run."""
    notes: Sequence[tuple[str, str]] = ()
    """Step and text of the run's own notes, beside those in the manifests."""
    gains: Sequence[Gain] = ()
    """Results of `gain` for this run; empty if it was not measured."""

    @cached_property
    def ladder(self) -> Ladder:
        """The ladder of the steps."""
        return build_ladder(self.steps)

    @cached_property
    def deliverables(self) -> list[Deliverable]:
        """The files that the run was made for."""
        return find_deliverables(self.ladder, self.gates)

    @cached_property
    def paths(self) -> Mapping[str, Path]:
        """The artifact directory of each step."""
        return {step.step: step.artifact.path for step in self.steps}

    def all_notes(self) -> list[tuple[str, str]]:
        """Return step and text of every note: those of the artifacts, then those of the run."""
        of_artifacts = [
            (step.step, line)
            for step in self.steps
            for line in artifact.notes(step.artifact.manifest)
        ]
        return list(dict.fromkeys((*of_artifacts, *self.notes)))

    def digest(self) -> str:
        """Return the sha256 of everything that the pages show, and of the code that lays it out.

        It does not cover which steps were cached: repeating a pipeline gives the same pages.
        """
        package = Path(__file__).parents[1]
        return digest_json(
            {
                "pipeline": self.pipeline,
                "command": self.command,
                "manifests": [
                    (step.step, step.parent, step.artifact.manifest.digest) for step in self.steps
                ],
                "gates": [gate.model_dump(mode="json") for gate in self.gates],
                "gains": [gain.model_dump(mode="json") for gain in self.gains],
                "notes": [list(note) for note in self.notes],
                "code": [digest_tree(package, pattern) for pattern in _SOURCES],
            }
        )
