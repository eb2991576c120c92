"""Config of a ``prune`` step; imports no torch."""

from __future__ import annotations

from typing import Annotated, Literal, get_args

from pydantic import Field, model_validator

from compressor.config.record import BatchSize, DataName, Record
from compressor.engine.contract import PassConfig
from compressor.models.capabilities.cuttable_axes import AxisKind
from passes.common.config import TrainingConfig, validation_problems
from passes.common.field_problems import is_set, raise_problems

Amount = Annotated[float, Field(gt=0)] | Annotated[str, Field(pattern=r"^[0-9]+(\.[0-9]+)?%$")]
"""An absolute value, or a percentage of the parent's, such as ``70%``."""
_UNITS_IN_MULTIPLES = frozenset({"channels", "ffn", "hidden"})
"""Kinds of axes whose units are kept in multiples; heads and layers are cut one at a time."""


class Target(Record):
    """Size of the pruned model. Set exactly one field, to a value or a percentage of the parent."""

    macs: Amount | None = None
    """Multiply-accumulates of one sample (one token of a language model). A number up to 1 is a
    fraction of the parent's: `0.7` and `70%` mean the same."""
    params: Amount | None = None
    """Number of parameters. A number up to 1 is a fraction of the parent's."""
    size_mb: Amount | None = None
    """Size of the weights in megabytes (10⁶ bytes), at 4 bytes per parameter."""
    latency_ms: Amount | None = None
    """Time in milliseconds of all convolutions and matrix products of one sample, measured one by
    one as `latency` specifies."""
    dimensions: dict[str, Annotated[int, Field(ge=1)]] | None = None
    """Sizes of single dimensions, such as `{ffn: 64, vision_blocks.1.expanded: 48}`; all others
    keep their size. `pass prune --dry-run` lists the dimensions of a model."""

    @model_validator(mode="after")
    def _check_exactly_one(self) -> Target:
        names = [name for name in type(self).model_fields if getattr(self, name) is not None]
        if len(names) != 1:
            raise ValueError(
                "give one of macs, params, size_mb, latency_ms or dimensions, "
                f"not {' and '.join(names) or 'none'}"
            )
        return self

    @property
    def measure(self) -> str:
        """The name of the field that is set."""
        return next(name for name in type(self).model_fields if getattr(self, name) is not None)

    def limit(self, measure: str, parent: float) -> float | None:
        """Return the largest value of a measure that the target allows.

        Args:
            measure: ``macs``, ``params``, ``size_mb`` or ``latency_ms``.
            parent: the value of the parent model.

        Returns:
            The limit in the unit of ``parent``; None if the target sets another measure.
        """
        amount: float | str | None = getattr(self, measure)
        if amount is None:
            return None
        if isinstance(amount, str):
            return float(amount.removesuffix("%")) / 100 * parent
        return amount * parent if amount <= 1 and measure in {"macs", "params"} else amount


class LatencyConfig(Record):
    """Measurement of operators on this machine."""

    runtime: Literal["onnxruntime", "torch"] = "onnxruntime"
    """Runtime that executes the operators; choose the one that the model is deployed in."""
    threads: Annotated[int, Field(ge=1)] = 1
    """Number of threads of the runtime."""
    repeats: Annotated[int, Field(ge=1)] = 50
    """Timed calls of each operator; their lower quartile is used."""


class RecoveryConfig(Record):
    """Training after a cut, with the labels and with the unpruned parent as the teacher."""

    train: DataName = "train"
    """Name of the data set to train on."""
    validation: DataName | None = "validation"
    """Name of the data set that is evaluated during training and after every round; `null` for
    none. Do not use the test set."""
    training: TrainingConfig = TrainingConfig()
    """Optimizer, schedule and number of steps. In a gradual schedule the steps are divided among
    the rounds."""
    soft_weight: Annotated[float, Field(ge=0, le=1)] = 0.7
    """Weight w of the soft labels in the loss of each head, (1 − w) · cross-entropy with the labels
    + w · cross-entropy with the parent's probabilities. 0 trains on the labels alone."""
    temperature: Annotated[float, Field(gt=0)] = 2.0
    """Temperature of the softmax of both models in the soft loss (Hinton et al. 2015)."""

    @model_validator(mode="after")
    def _check_effects(self) -> RecoveryConfig:
        problems = validation_problems(self.validation, self.training)
        if self.soft_weight == 0 and is_set(self, "temperature"):
            problems.append("`temperature` has no effect with `soft_weight: 0`: leave it out")
        raise_problems(problems)
        return self


class ScheduleConfig(Record):
    """Number of rounds of cutting and recovery."""

    kind: Literal["once", "gradual"]
    """`once` cuts to the target at once. `gradual` cuts in rounds: each scores the units anew, cuts
    some of them, and trains."""
    rounds: Annotated[int, Field(ge=2)] = 5
    """Number of rounds of a gradual schedule; each takes an equal part of the recovery's steps."""
    rule: Literal["cubic", "threshold"] = "cubic"
    """Size after each round of a gradual schedule. `cubic`: the distance to the target after round
    r of N is (1 − r/N)³ of the initial one (Zhu & Gupta 2017). `threshold`: units are cut whose
    score is below `threshold`, but not beyond the target. The last round always meets the
    target."""
    threshold: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """Score below which `rule: threshold` cuts a unit, as a fraction of the largest score of its
    axis."""

    @model_validator(mode="after")
    def _check_effects(self) -> ScheduleConfig:
        problems = []
        if self.kind == "once":
            problems = [
                f"`{name}` has no effect with `kind: once`: leave it out, or set `kind: gradual`"
                for name in ("rounds", "rule", "threshold")
                if is_set(self, name)
            ]
        elif self.rule != "threshold" and is_set(self, "threshold"):
            problems = [
                "`threshold` has no effect with `rule: cubic`: leave it out, or set "
                "`rule: threshold`"
            ]
        raise_problems(problems)
        return self

    @property
    def cuts(self) -> int:
        """The number of cuts."""
        return self.rounds if self.kind == "gradual" else 1


class PruneConfig(PassConfig):
    """Config of a ``prune`` step."""

    target: Target
    """Size of the pruned model."""
    axes: Annotated[tuple[AxisKind, ...], Field(min_length=1)] = ("channels", "ffn", "heads")
    """Kinds of axes that may be cut: `channels` of convolutions; `ffn`, the inner widths of
    feed-forward blocks; attention `heads`, in whole key-value groups; `layers`, which in a
    convolutional network are the residual blocks of a stage; and `hidden`, the width of a language
    model's residual stream. A target of `dimensions` names what is cut itself."""
    importance: Literal["magnitude", "activation", "entropy", "gradient", "taylor"] = "taylor"
    """Score of a unit; low scores are cut first. `magnitude`: norm of its weights. `activation`:
    norm of its activations times norm of the weights that read them (Wanda). `entropy`: entropy of
    its activations. `gradient`: norm of the gradient of the weights that read it. `taylor`: change
    of the loss without it, to first order."""
    layer_importance: Literal["cosine", "loss", "taylor"] | None = None
    """Score of a layer. `cosine`: mean of 1 − cosine similarity of its input and output. `loss`:
    increase of the loss without the layer, with one run over the samples per layer. `taylor`: the
    same to first order. By default `taylor` if other axes are cut too and `importance` is `taylor`,
    else `cosine`. Without calibration samples layers are scored by the norm of their weights."""
    calibration: DataName | None = None
    """Name of the data set of the calibration samples. Every `importance` except `magnitude` needs
    it. `importance: gradient` and `taylor` compute a loss and so need labels, and so do
    `layer_importance: loss` and `taylor`."""
    num_samples: Annotated[int, Field(ge=1)] = 768
    """Number of calibration samples, spread evenly over the data set."""
    batch_size: BatchSize = 48
    """Calibration samples per batch."""
    multiple: Annotated[int, Field(ge=1)] = 8
    """Keep a multiple of this many channels, and of the `ffn` and `hidden` widths, as hardware
    prefers. Heads and layers are cut one at a time."""
    min_keep: Annotated[float, Field(gt=0, le=1)] = 0.25
    """Smallest part of the units of a dimension that is kept while sizes are searched for. Sizes
    given by a target of `dimensions` are not bound by it; with one, only the rounds of `rule:
    threshold` are."""
    repair: bool = True
    """Adjust the weights that read a cut dimension by least squares, so that their outputs on the
    calibration samples change as little as possible. Needs `calibration`."""
    latency: LatencyConfig | None = None
    """Measure the time of every operator at every size on this machine. A target of `latency_ms`
    needs it; with other targets it refuses a cut that makes the model slower. Off by default."""
    recovery: RecoveryConfig | None = None
    """Training after the cut; none by default. See also `distill`, which can match features."""
    schedule: ScheduleConfig = ScheduleConfig(kind="once")
    """One cut by default; `{kind: gradual}` cuts in rounds with training after each."""

    @property
    def loss_field(self) -> str | None:
        """The setting that computes a loss on the calibration samples, if one does.

        A loss needs labels; other scores, `repair` and `latency` run the model without them.
        """
        if self.calibration is None:
            return None
        kinds = set(self.axes if self.target.dimensions is None else get_args(AxisKind))
        if kinds != {"layers"} and self.importance in {"gradient", "taylor"}:
            return f"importance: {self.importance}"
        if "layers" in kinds and self.layer_importance in {"loss", "taylor"}:
            return f"layer_importance: {self.layer_importance}"
        return None

    @model_validator(mode="after")
    def _check_combinations(self) -> PruneConfig:
        raise_problems([*self._missing(), *self._without_effect()])
        return self

    def _missing(self) -> list[str]:
        """Return the fields that another field requires."""
        problems = []
        if self.importance != "magnitude" and self.calibration is None:
            problems.append(
                f"importance {self.importance!r} needs samples: name a set in `calibration`"
            )
        if self.latency is not None and self.calibration is None:
            problems.append("`latency` needs a sample: name a set in `calibration`")
        if self.target.latency_ms is not None and self.latency is None:
            problems.append(
                "a target of latency_ms needs `latency`, with a runtime and a number of threads"
            )
        if self.schedule.kind == "gradual":
            problems += self._missing_for_rounds()
        return problems

    def _missing_for_rounds(self) -> list[str]:
        if self.recovery is None:
            return ["a gradual `schedule` trains between its cuts: configure `recovery`"]
        problems = []
        training, rounds = self.recovery.training, self.schedule.rounds
        if training.steps < rounds:
            problems.append(f"{rounds} rounds need at least {rounds} steps of recovery")
        if training.patience is not None:
            problems.append(
                "`patience` would end a round early: leave it out with a gradual `schedule`"
            )
        return problems

    def _without_effect(self) -> list[str]:
        """Return the fields that have no effect beside the others."""
        problems = []
        if self.calibration is None:
            problems += [
                f"`{name}` has no effect without `calibration`: leave it out, or name a data set"
                for name in ("layer_importance", "num_samples", "batch_size", "repair")
                if is_set(self, name)
            ]
        if self.target.dimensions is not None:
            problems += self._without_effect_on_dimensions()
            return problems
        kinds = set(self.axes)
        if is_set(self, "layer_importance") and "layers" not in kinds:
            problems.append(
                "`layer_importance` has no effect unless `axes` lists layers: leave it out, or "
                "add layers"
            )
        if is_set(self, "importance") and kinds == {"layers"} and self.calibration is not None:
            problems.append("`importance` has no effect if only layers are cut: leave it out")
        if is_set(self, "multiple") and not kinds & _UNITS_IN_MULTIPLES:
            problems.append(
                "`multiple` has no effect on heads and layers: leave it out, or add channels, ffn "
                "or hidden to `axes`"
            )
        return problems

    def _without_effect_on_dimensions(self) -> list[str]:
        problems = []
        if is_set(self, "axes"):
            problems.append(
                "`axes` has no effect with a target of `dimensions`, which names what is cut: "
                "leave it out"
            )
        searches = self.schedule.kind == "gradual" and self.schedule.rule == "threshold"
        if not searches:
            problems += [
                f"`{name}` has no effect with a target of `dimensions`, which states the sizes: "
                "leave it out"
                for name in ("multiple", "min_keep")
                if is_set(self, name)
            ]
        return problems
