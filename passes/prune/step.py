"""The ``prune`` pass: its config and what the engine calls."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from compressor.artifacts.store import Artifact
from compressor.config.record import DataName, Record
from compressor.engine.contract import (
    Estimate,
    Pass,
    PassConfig,
    PassContext,
    PassOutput,
    PlanContext,
)
from compressor.models.capabilities.capability import Capability
from compressor.models.capabilities.cuttable_axes import AxisKind, CuttableAxes
from compressor.models.capabilities.training_heads import TrainingHeads
from compressor.models.facts import ModelFacts
from passes.common.config import TrainingConfig

Amount = Annotated[float, Field(gt=0)] | Annotated[str, Field(pattern=r"^[0-9]+(\.[0-9]+)?%$")]
"""A figure, or a part of the parent's as a percentage, such as 70%."""


class Target(Record):
    """How small the model becomes; one of these, as a figure or as a part of the parent's (70%)."""

    macs: Amount | None = None
    """Multiply-accumulates of one sample; up to 1 is a part of the parent's too (0.7)."""
    params: Amount | None = None
    """Parameters; up to 1 is a part of the parent's too."""
    size_mb: Amount | None = None
    """The weights in megabytes (10⁶ bytes), as they are saved."""
    latency_ms: Amount | None = None
    """Milliseconds that all convolutions and matrix products take together for one sample, timed as `latency` says."""
    dimensions: dict[str, Annotated[int, Field(ge=1)]] | None = None
    """Widths by the names that the dry run shows, as `{ffn: 64, vision_blocks.1.expanded: 48}`."""

    @model_validator(mode="after")
    def _one_of(self) -> Target:
        given = [name for name in type(self).model_fields if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(
                f"give one of macs, params, size_mb, latency_ms or dimensions, not {' and '.join(given) or 'none'}"
            )
        return self

    @property
    def given(self) -> str:
        """The name of the field that is given."""
        return next(name for name in type(self).model_fields if getattr(self, name) is not None)

    def limit(self, name: str, whole: float) -> float | None:
        """What the field allows where the parent has ``whole``; None where it says nothing."""
        amount: float | str | None = getattr(self, name)
        if amount is None:
            return None
        if isinstance(amount, str):
            return float(amount.removesuffix("%")) / 100 * whole
        return amount * whole if amount <= 1 and name in {"macs", "params"} else amount


class Latency(Record):
    """How the time of a layer is measured."""

    runtime: Literal["onnxruntime", "torch"] = "onnxruntime"
    """What the model will run in."""
    threads: Annotated[int, Field(ge=1)] = 1
    """Its threads."""
    repeats: Annotated[int, Field(ge=1)] = 50
    """Calls of which the lower quartile counts."""


class Recovery(Record):
    """Training that wins back what a cut loses, from labels and from what the unpruned parent says."""

    train: DataName = "train"
    """The set that is learnt from."""
    validation: DataName | None = "validation"
    """The set that is looked at while training, and after every round; never the test set."""
    training: TrainingConfig = TrainingConfig()
    """Steps, batch size, learning rate and so on; of a gradual schedule, over all rounds together."""
    soft_weight: Annotated[float, Field(ge=0, le=1)] = 0.7
    """Weight of the parent's soft labels, for each of the family's heads; the hard labels have the rest."""
    temperature: Annotated[float, Field(gt=0)] = 2.0
    """The temperature of the soft labels."""


class Schedule(Record):
    """In how many cuts the target is reached."""

    kind: Literal["once", "gradual"]
    """All at once; or in rounds that score anew, cut some and recover."""
    rounds: Annotated[int, Field(ge=2)] = 5
    """Cuts of a gradual schedule; each is followed by its equal part of the recovery's steps."""
    rule: Literal["cubic", "threshold"] = "cubic"
    """What a round cuts: up to a share of the way to the target that falls as a cube (Zhu & Gupta 2017), or units that score
    below a threshold, never beyond the target. The last round meets the target."""
    threshold: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """Of the `threshold` rule: the part of the largest score of its axis below which a unit goes."""

    @property
    def cuts(self) -> int:
        """How many there are."""
        return self.rounds if self.kind == "gradual" else 1


class PruneConfig(PassConfig):
    """The fields of a ``prune`` step."""

    target: Target
    """How small the model becomes."""
    axes: tuple[AxisKind, ...] = ("channels", "ffn", "heads")
    """What may be cut: channels of convolutions, inner widths, attention heads (whole key groups), layers (of a CNN, residual
    blocks in a row), and the hidden width that runs through all layers of a language model. A target of `dimensions` may name
    any."""
    importance: Literal["magnitude", "activation", "entropy", "gradient", "taylor"] = "taylor"
    """What tells which units matter: the weights' norm; norm times activation (Wanda); the entropy of the activation; the
    gradient's norm; the loss without them (Taylor)."""
    layer_importance: Literal["cosine", "loss", "taylor"] | None = None
    """What tells which layers matter: how much they turn what goes through; how much the loss grows without them, measured one
    by one; the same to first order. By default `cosine`, and `taylor` where other axes that are scored so are cut too."""
    calibration: DataName | None = None
    """The set that all but magnitude look at, with its labels."""
    num_samples: Annotated[int, Field(ge=1)] = 768
    """How many of its samples, evenly over the set."""
    batch_size: Annotated[int, Field(ge=1)] = 48
    """Samples at a time."""
    multiple: Annotated[int, Field(ge=1)] = 8
    """Channels and inner widths become multiples of it, as hardware likes; heads and layers go one by one."""
    min_keep: Annotated[float, Field(gt=0, le=1)] = 0.25
    """The part of every width that stays at least."""
    repair: bool = True
    """With a calibration set: change the weights of what reads a narrower width, by least squares, so that it answers as
    before, as nearly as it can."""
    latency: Latency | None = None
    """Time every layer at every width on this machine: for a target of latency_ms, or to refuse a cut that is slower."""
    recovery: Recovery | None = None
    """Training after the cut; none by default."""
    schedule: Schedule = Schedule(kind="once")
    """All at once, or `{kind: gradual}`: in rounds with recovery after each."""

    @model_validator(mode="after")
    def _fits(self) -> PruneConfig:
        if self.importance != "magnitude" and self.calibration is None:
            raise ValueError(
                f"importance {self.importance!r} looks at samples: name a set in `calibration`"
            )
        if self.latency is not None and self.calibration is None:
            raise ValueError("`latency` needs a sample: name a set in `calibration`")
        if self.target.latency_ms is not None and self.latency is None:
            raise ValueError(
                "a target of latency_ms needs `latency`: which runtime, how many threads"
            )
        if self.schedule.kind == "gradual":
            if self.recovery is None:
                raise ValueError(
                    "a gradual `schedule` trains between its cuts: say how in `recovery`"
                )
            if self.recovery.training.steps < self.schedule.rounds:
                raise ValueError(
                    f"{self.schedule.rounds} rounds need as many steps of recovery at least"
                )
            if self.recovery.training.patience is not None:
                raise ValueError(
                    "`patience` would end a round before its time: leave it out with a gradual `schedule`"
                )
        return self


class Prune(Pass[PruneConfig]):
    """Cuts channels, heads, inner widths and layers out of a model: what is left is a smaller dense one, and its config says so.

    Which dimensions go together is stated by the model's family (the dependency groups of Fang et al. 2023). Units are scored by
    magnitude (Li et al. 2017), activation (Sun et al. 2024), entropy (Luo & Wu 2017), gradient or first-order Taylor expansion
    (Molchanov et al. 2019), layers by how much they turn what goes through (Men et al. 2024); they go in the order of
    importance lost per cost saved, at once or in rounds with training between (Zhu & Gupta 2017). Accuracy comes back with
    `recovery:`, or with a `distill` step after it, which can match features too: `student: {parent: true}, teacher: <the
    unpruned step>`.
    """

    name = "prune"
    version = 3
    accepts = frozenset({"torch"})
    produces = "torch"
    Config = PruneConfig
    tools: ClassVar[tuple[str, ...]] = ("torch", "numpy")

    def needs(self, config: PruneConfig) -> tuple[type[Capability], ...]:
        """Return axes, and heads where a loss is computed."""
        labelled = config.calibration is not None or config.recovery is not None
        return (CuttableAxes, TrainingHeads) if labelled else (CuttableAxes,)

    def tools_for(self, config: PruneConfig) -> tuple[str, ...]:
        """ONNX Runtime too, where it is what times the layers."""
        timed = config.latency is not None and config.latency.runtime == "onnxruntime"
        return (*self.tools, "onnxruntime") if timed else self.tools

    def estimate(self, config: PruneConfig, parent: ModelFacts, context: PlanContext) -> Estimate:
        """What the target says of the output; the time of scoring and of recovery."""
        from passes.common.estimates import mapped_memory, training_memory, training_seconds

        cuts = config.schedule.cuts
        whole = parent.size_bytes or 4 * (parent.parameters or 0)
        ratio = _ratio(config.target, parent, whole)
        scoring = (
            _BACKWARD_TOO * cuts * config.num_samples if config.importance != "magnitude" else 0
        )
        learning = _learning(config, ratio)
        memory = mapped_memory(parent, config.batch_size, int((1 + ratio) * whole))
        if config.recovery is not None:
            memory = max(memory, training_memory(parent, config.recovery.training.batch_size))
        return Estimate(
            model=ModelFacts(
                parent.family,
                parent.config,
                int(ratio * parent.parameters) if parent.parameters else None,
                int(ratio * parent.macs) if parent.macs else None,
                int(ratio * whole) or None,
            ),
            seconds=training_seconds(parent, scoring + learning),
            peak_memory_bytes=memory,
            # The result twice, and what `repair` changes; while it learns a checkpoint with gradients' moments, the average and
            # what the rounds left.
            disk_bytes=int(2 * ratio * whole) + (whole if config.repair else 0)
            if config.recovery is None
            else 6 * whole,
        )

    def requires(self, config: PruneConfig, parent: Artifact, context: PassContext) -> None:
        """Finite weights, and data that fit; what can be cut is known once the family is asked, in ``run``."""
        from compressor.models.checkpoint.safetensors_files import check_finite
        from passes.common.requirements import check_data

        check_finite(parent.model)
        recovery = config.recovery
        learns = (recovery.train, recovery.validation) if recovery else ()
        check_data(parent, (config.calibration, *learns), context)

    def preview(
        self, config: PruneConfig, parent: Artifact, context: PassContext
    ) -> list[Mapping[str, Any]]:
        """The cut of every axis, as ``run`` would make it; for a gradual schedule, as the first scores foretell it."""
        from passes.prune.pruning import preview

        return preview(config, parent, context)

    def run(
        self, config: PruneConfig, parent: Artifact, out: Path, context: PassContext
    ) -> PassOutput:
        """Score, choose, cut, recover, as often as the schedule says, and save; ``context.work`` holds where it is."""
        from passes.prune.pruning import prune

        return prune(config, parent, out, context)

    def ensures(
        self,
        config: PruneConfig,
        parent: Artifact,
        out: Path,
        context: PassContext,
    ) -> None:
        """It loads again under its new config, and its weights are finite."""
        from compressor.models.checkpoint.loading import load_module
        from compressor.models.checkpoint.safetensors_files import check_finite

        check_finite(out)
        load_module(out, context.device)


_BACKWARD_TOO = 3
"""A forward and a backward pass, in forward passes."""


def _learning(config: PruneConfig, ratio: float) -> float:
    """Forward passes of the parent that recovery amounts to: those of the models that learn, and the parent's own."""
    if config.recovery is None:
        return 0.0
    cuts = config.schedule.cuts
    sizes = [ratio + (1 - ratio) * (1 - number / cuts) ** 3 for number in range(1, cuts + 1)]
    training = config.recovery.training
    teacher = 1 if config.recovery.soft_weight > 0 else 0
    return training.steps * training.batch_size * (_BACKWARD_TOO * sum(sizes) / cuts + teacher)


def _ratio(target: Target, parent: ModelFacts, size: int) -> float:
    """The part of the parent that is left, as far as the target tells."""
    wholes = {"macs": parent.macs, "params": parent.parameters, "size_mb": size / 1e6}
    for name, whole in wholes.items():
        if whole and (limit := target.limit(name, whole)) is not None:
            return min(1.0, limit / whole)
    return 1.0
