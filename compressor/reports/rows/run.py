"""Everything that a run's report tells, in one record, and its digest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from compressor.artifacts.fingerprint import digest_json, digest_tree
from compressor.artifacts.gain import Gain
from compressor.artifacts.runs import GateResult
from compressor.reports.rows.ladder import Ladder, LadderInput, build_ladder


@dataclass(frozen=True)
class RunReport:
    """One run of one pipeline."""

    pipeline: str
    steps: Sequence[LadderInput]
    gates: Sequence[GateResult]
    command: str
    """What reproduces it."""
    notes: Sequence[tuple[str, str]] = ()
    """Step and line, of what this run had to say beside the notes that the manifests hold."""
    gains: Sequence[Gain] = ()
    """What `gain` found of it, if it was asked."""

    @cached_property
    def ladder(self) -> Ladder:
        """The ladder of the steps."""
        return build_ladder(self.steps)

    @cached_property
    def paths(self) -> Mapping[str, Path]:
        """Step to artifact directory."""
        return {step.step: step.artifact.path for step in self.steps}

    def all_notes(self) -> list[tuple[str, str]]:
        """The notes of every artifact, then those of the run, each once."""
        from compressor.reports.rows import facts

        kept = [
            (step.step, line) for step in self.steps for line in facts.notes(step.artifact.manifest)
        ]
        return list(dict.fromkeys((*kept, *self.notes)))

    def digest(self) -> str:
        """sha256 of all that the pages show, and of the code that lays it out.

        Whether a step was taken from the store is no part of it: a second run of the same pipeline shows the same pages.
        """
        return digest_json(
            {
                "pipeline": self.pipeline,
                "command": self.command,
                "manifests": [
                    (step.step, step.parent, step.artifact.manifest.digest) for step in self.steps
                ],
                "gates": [gate.model_dump(mode="json") for gate in self.gates],
                "gains": [one.model_dump(mode="json") for one in self.gains],
                "notes": [list(note) for note in self.notes],
                "code": digest_tree(Path(__file__).parent),
            }
        )
