"""``manifest.json``: the identity, provenance and measurements of an artifact."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AliasChoices, BaseModel, ConfigDict, Field

from compressor.artifacts.fingerprint import digest_json

SCHEMA_VERSION = 1


class _Part(BaseModel):
    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, serialize_by_alias=True
    )


class FileEntry(_Part):
    """One file of an artifact."""

    sha256: str
    bytes: int


class Metric(_Part):
    """One measured value with its unit, direction and uncertainty."""

    name: str
    """``top1``, or for a slice ``top1[input=speech]``; latencies end in their unit
    (``latency_p50_ms``)."""
    value: float
    unit: str
    """``fraction``, ``ms``, ``bytes``, ``samples/s``, ``count``; empty for a bare number, such as
    perplexity."""
    better: Literal["higher", "lower"]
    samples: int
    """Number of samples or repeats behind the value; 1 for exact counts."""
    low: float | None = None
    """Lower end of the 95 % interval, if there is one."""
    high: float | None = None
    """Upper end of the 95 % interval."""


class PassRecord(_Part):
    """The pass that wrote an artifact."""

    name: str
    version: int
    config: dict[str, Any]
    """Every field, defaults included."""
    code: str | None = None
    """sha256 of the pass's package if it is not one of this project's."""


class Environment(_Part):
    """The machine that built an artifact; recorded, not part of the id."""

    platform: str
    cpu: str
    cores: int
    memory_bytes: int
    python: str
    threads: int
    device: str


class Manifest(_Part):
    """The whole record; ``digest`` is the sha256 of the rest, so that any change is detected."""

    schema_version: int = SCHEMA_VERSION
    id: str
    """sha256 over everything that can change the bytes of ``model/``."""
    step: str
    """Name of the step in the pipeline that first built it; not part of the id."""
    format: Annotated[
        str, Field(validation_alias=AliasChoices("format", "kind"), serialization_alias="kind")
    ]
    """The model's format; the JSON key is ``kind``, so that earlier manifests verify."""
    parents: dict[str, str]
    """Role to id: ``{"parent": …, "teacher": …}``; empty for a source model."""
    pass_: PassRecord
    seed: int
    tools: dict[str, str]
    """Version of each library that can change the bytes."""
    data: dict[str, str]
    """Digest of each data set used."""
    files: dict[str, FileEntry]
    """The model: every file below ``model/``, by path relative to the artifact."""
    reports: dict[str, FileEntry]
    """Reports and logs; they are replaced when the model is measured again."""
    measured: str
    """Digest of the ``evaluate:`` section and its data; empty if nothing was measured."""
    metrics: tuple[Metric, ...]
    summary: dict[str, Any]
    """Values from the pass: history, decisions, counts."""
    environment: Environment
    created: str
    """UTC, ISO 8601."""
    seconds: float
    """Wall time of the pass, in the run that finished it."""
    peak_rss_bytes: int
    digest: str = ""

    def sealed(self) -> Manifest:
        """Return the same manifest with its digest filled in."""
        return self.model_copy(update={"digest": self.content_digest()})

    def content_digest(self) -> str:
        """Return the sha256 of everything but ``digest``."""
        return digest_json(self.model_dump(mode="json", exclude={"digest"}))

    def metric(self, name: str) -> Metric | None:
        """Return the metric of a name, if it was measured."""
        return next((metric for metric in self.metrics if metric.name == name), None)

    @property
    def model_bytes(self) -> int:
        """Size of the model on disk."""
        return sum(entry.bytes for entry in self.files.values())
