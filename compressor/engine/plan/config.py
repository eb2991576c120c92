"""Records of pipeline.yaml; ``pipeline.py`` reads and checks them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from compressor.config.record import Record
from compressor.evaluation.records import EvaluateConfig
from compressor.models.families.module.config import InputConfig

SOURCE = "source"
_MAX_NAME = 100
"""Characters of a name: it is part of the names of folders, which file systems limit to 255."""
_Name = Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_.-]*$", max_length=_MAX_NAME)]


_STARTS = ("path", "family", "python", "timm", "torchvision")
"""Keys that name the model; one of them is set."""
_MODULES = frozenset({"python", "timm", "torchvision"})
_BELONGS: Mapping[str, frozenset[str]] = {
    "preset": frozenset({"family"}),
    "config": frozenset({"family"}),
    "arguments": _MODULES,
    "weights": _MODULES,
    "inputs": _MODULES,
    "outputs": _MODULES,
    "unit": _MODULES,
}
"""Key of a model to the keys with which it has an effect."""


class ModelConfig(Record):
    """The model to start from: a folder or file, a model of a family, or any torch module."""

    path: str | None = None
    """A model's folder or file in any installed format, or an artifact; relative to
    pipeline.yaml. `autoglm-compress show PATH` describes it. An artifact that was measured in
    another way than this pipeline asks is measured again: in its store, or a copy in this one."""
    family: str | None = None
    """A model family; the weights are initialized from `seed`."""
    preset: str | None = None
    """One of the family's presets."""
    config: dict[str, Any] | None = None
    """Fields of the family's architecture; they override those of `preset`."""
    python: str | None = None
    """A Python file and its function or class that returns a torch.nn.Module:
    `my_model.py:build`; relative to pipeline.yaml. It runs with your permissions, and only with
    `--allow-code`. The file, and the files beside it that it imports, are stored with the model."""
    timm: str | None = None
    """Name of a model of timm, such as `mobilenetv3_small_100`."""
    torchvision: str | None = None
    """Name of a model of torchvision, such as `resnet18`."""
    arguments: dict[str, Any] = {}  # noqa: RUF012 - pydantic copies it
    """Keyword arguments of the function, or of the library's constructor:
    `{num_classes: 10}`."""
    weights: str | None = None
    """A .safetensors file, or a .pt or .pth file with a state dict, that fits the module exactly;
    relative to pipeline.yaml. By default the weights are initialized from `seed`; nothing is
    downloaded."""
    inputs: dict[str, InputConfig] | None = None
    """Inputs of `forward` by name: `{image: {shape: [batch, 3, 224, 224], dtype: float32}}`. They
    are given by keyword if the names are those of its parameters, otherwise in their order. By
    default, for timm and torchvision, `image` with the size that the model was trained on."""
    outputs: tuple[str, ...] | dict[str, int | str | tuple[int | str, ...]] | None = None
    """Names of the tensors that `forward` returns, in order; or a name for the position or key of
    each: `{logits: 0}`. By default keys keep their names, a single tensor [batch, classes] is
    `logits`, any other one `output`, and those of a tuple are `output_0`, `output_1`, …"""
    unit: Literal["sample", "token"] | None = None
    """Unit of the MACs; `token` for models whose first variable dimension counts tokens. By default
    `sample`."""
    measure: bool = True
    """True to measure the source itself as `evaluate:` describes."""

    @model_validator(mode="after")
    def _one_of(self) -> ModelConfig:
        starts = [name for name in _STARTS if getattr(self, name) is not None]
        if len(starts) != 1:
            raise ValueError(
                "give either `path` (a model's folder or file) or `family` (with `preset` or "
                "`config`), or one of `python`, `timm` and `torchvision` (with `weights`); "
                f"given are {' and '.join(starts) or 'none of them'}"
            )
        for name, owners in _BELONGS.items():
            if name in self.model_fields_set and starts[0] not in owners:
                owner = " or ".join(f"`{owner}`" for owner in _STARTS if owner in owners)
                raise ValueError(f"`{name}` goes with {owner}, not with `{starts[0]}`")
        if self.family is not None and self.preset is None and self.config is None:
            raise ValueError("`family` needs a `preset` or a `config`")
        if self.python is not None and not self.inputs:
            raise ValueError(
                "`python` needs `inputs`: `{image: {shape: [batch, 3, 224, 224], dtype: float32}}`"
            )
        return self

    @property
    def start(self) -> str:
        """The key that names the model."""
        return next(name for name in _STARTS if getattr(self, name) is not None)


class StepHeader(Record):
    """Keys that every step under `passes:` may have, beside those of its pass."""

    type: str
    """The pass; `autoglm-compress passes` lists them."""
    name: _Name | None = None
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
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError(f"no value is at least {self.min:g} and at most {self.max:g}")
        if self.max_ratio is not None and self.max_ratio <= 0:
            raise ValueError(f"no ratio is at most {self.max_ratio:g}: metrics are positive")
        return self


class PipelineConfig(Record):
    """All of pipeline.yaml."""

    version: Literal[1]
    """Version of the file format."""
    name: _Name
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
    require_signatures: bool = False
    """True to use imported artifacts, and artifacts and baselines of other stores, only if they are
    signed with a key in `AUTOGLM_COMPRESS_PUBLIC_KEY`. What this store has built needs no
    signature."""
    gates: tuple[GateConfig, ...] = ()
    """Limits that decide the exit code."""
