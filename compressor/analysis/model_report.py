"""Report on any model: its format, its facts, and the passes that accept it."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from compressor.engine.plan.capabilities import suitable_passes
from compressor.runtimes.formats import StoredModel, recognizing_formats


class PassReport(BaseModel):
    """A pass, and the reasons why it does not accept the model."""

    model_config = ConfigDict(frozen=True)

    name: str
    suitable: bool
    reasons: tuple[str, ...]


class ModelReport(BaseModel):
    """Everything that `show` prints about a model that is not an artifact."""

    model_config = ConfigDict(frozen=True)

    path: str
    format: str
    summary: str
    """One-line summary of the format."""
    runtime: str | None
    """The runtime that executes it here."""
    also: tuple[str, ...]
    """Other formats that recognize the path; they are not used."""
    size_bytes: int | None
    parameters: int | None
    macs: int | None
    details: tuple[tuple[str, str], ...]
    """Labelled facts from the format."""
    passes: tuple[PassReport, ...]


def report_model(model: StoredModel) -> ModelReport:
    """Describe a model on disk and check it against every installed pass.

    Raises:
        ModelError: the model's description cannot be read.
    """
    format_, path = model.format, model.path
    facts = format_.facts(path)
    return ModelReport(
        path=str(path),
        format=format_.name,
        summary=format_.summary,
        runtime=format_.runtime,
        also=tuple(
            candidate.name for candidate in recognizing_formats(path) if candidate is not format_
        ),
        size_bytes=facts.size_bytes,
        parameters=facts.parameters,
        macs=facts.macs,
        details=tuple(format_.describe(path)),
        passes=tuple(
            PassReport(name=entry.pass_name, suitable=not entry.reasons, reasons=entry.reasons)
            for entry in suitable_passes(format_, facts)
        ),
    )
