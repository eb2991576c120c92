"""Records of pipeline.yaml; ``pipeline.py`` reads and checks them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from compressor.config.record import Record
from compressor.evaluation.records import EvaluateConfig

SOURCE = "source"
_NAME = r"^[A-Za-z][A-Za-z0-9_.-]*$"


class ModelConfig(Record):
    """The model to start from: a folder, or a freshly initialized model of a family."""

    path: str | None = None
    """A model's folder or file in any installed format, or an artifact; relative to
    pipeline.yaml. `autoglm-compress show PATH` describes it."""
    family: str | None = None
    """A model family; the weights are initialized from `seed`."""
    preset: str | None = None
    """One of the family's presets."""
    config: dict[str, Any] | None = None
    """Fields of the family's architecture; they override those of `preset`."""
    measure: bool = True
    """True to measure the source itself as `evaluate:` describes."""

    @model_validator(mode="after")
    def _one_of(self) -> ModelConfig:
        if (self.path is None) == (self.family is None):
            raise ValueError(
                "give either `path` (a model directory) or `family` (with `preset` or `config`)"
            )
        if self.path is not None and (self.preset is not None or self.config is not None):
            raise ValueError("`preset` and `config` go with `family`, not with `path`")
        if self.family is not None and self.preset is None and self.config is None:
            raise ValueError("`family` needs a `preset` or a `config`")
        return self


class StepHeader(Record):
    """Keys that every step under `passes:` may have, beside those of its pass."""

    type: str
    """The pass; `autoglm-compress passes` lists them."""
    name: Annotated[str, Field(pattern=_NAME)] | None = None
    """Name of the step in other steps and in reports; by default its type."""
    from_: Annotated[str | None, Field(alias="from")] = None
    """The step whose artifact is read; by default the previous one."""
    measure: bool = True
    """True to measure this step as `evaluate:` describes."""


class BudgetConfig(Record):
    """Limits on repeated measurement for a latency gate; an open verdict stays undecided."""

    seconds: Annotated[float, Field(gt=0)] = 60.0
    """Wall time in seconds, counted once both models are open and warm."""
    rounds: Annotated[int, Field(ge=8, le=1024)] = 32
    """Maximum number of interleaved rounds; each round times the model and its reference."""


class GateConfig(Record):
    """A limit on a metric; a run that violates it ends with exit code 3."""

    metric: str
    """A metric such as `top1`, `top1[input=speech]`, `latency_p50_ms` or `size_bytes`."""
    step: str | None = None
    """The step to check; by default the last one."""
    against: str | None = None
    """The reference: a step, `parent`, `source`, or the path (with a `/`) of an artifact, a run, a
    store or a ladder.json."""
    min: float | None = None
    """The value must be at least this."""
    max: float | None = None
    """The value must be at most this."""
    max_drop: float | None = None
    """The value may be lower than the reference's by at most this."""
    max_ratio: float | None = None
    """The value divided by the reference's must be at most this."""
    judge: Literal["interval", "value"] = "interval"
    """`interval`: the whole 95 % interval must keep the limit, and latency is measured again until
    the interval is clear of it; `value`: the recorded value alone decides."""
    undecided: Literal["fail", "pass"] = "fail"
    """The verdict if the interval contains the limit."""
    budget: BudgetConfig = BudgetConfig()
    """Limits on measuring latency again."""

    @model_validator(mode="after")
    def _limits(self) -> GateConfig:
        relative = self.max_drop is not None or self.max_ratio is not None
        if not relative and self.min is None and self.max is None:
            raise ValueError("a gate needs a limit: `min`, `max`, `max_drop` or `max_ratio`")
        if relative and self.against is None:
            raise ValueError(
                "`max_drop` and `max_ratio` need `against: <step>`, `parent` or `source`"
            )
        return self


class PipelineConfig(Record):
    """All of pipeline.yaml."""

    version: Literal[1]
    """Version of the file format."""
    name: Annotated[str, Field(pattern=_NAME)]
    """Name of the pipeline in reports and run records."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Seed of every random number generator."""
    threads: Annotated[int, Field(ge=1, le=1024)] = 2
    """Threads of every pass. They change the order of sums, so they are part of every id."""
    model: ModelConfig
    """The model that the pipeline starts from."""
    data: dict[str, dict[str, Any]] = {}  # noqa: RUF012 - pydantic copies it
    """Named data sets; each names its `source`."""
    evaluate: EvaluateConfig = EvaluateConfig()
    """Measurements that are taken of every artifact."""
    passes: tuple[dict[str, Any], ...] = ()
    """The steps, in order."""
    gates: tuple[GateConfig, ...] = ()
    """Limits that decide the exit code."""
