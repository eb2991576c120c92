"""Search for the layer that lost a metric, by restoring layers of the parent model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict

from compressor.analysis.tensors import relative_error
from compressor.data.contract import Batch, Dataset
from compressor.errors import UsageError
from compressor.evaluation.accuracy import GeneratingModel, measure_accuracy
from compressor.evaluation.metrics import (
    is_metric,
    known_metrics,
    metric_named,
    reference_metrics,
)
from compressor.evaluation.records import AccuracyConfig, EvaluateConfig, Progress
from compressor.runtimes.call_limit import limit_calls
from compressor.runtimes.formats import StoredModel
from compressor.runtimes.session import Session

if TYPE_CHECKING:
    from torch import nn

    from compressor.artifacts.artifact import Artifact
    from compressor.runtimes.torch.session import TorchSession

_NO_COMMON_LAYER = (
    "no layer has the same input and output shapes in both models: "
    "widths were cut, or the models are unrelated"
)
_NO_IMPROVEMENT = "restoring layers does not improve the metric: all layers changed together"


class LayerTrial(BaseModel):
    """A measurement of the model with some layers restored."""

    model_config = ConfigDict(frozen=True)

    restored: tuple[str, ...]
    value: float
    error: float
    """Σ(b−a)² / Σa² of the outputs against the parent's; decides between equal values."""


@dataclass(frozen=True, slots=True)
class LayerSearch:
    """Result of ``search_layers``."""

    trials: tuple[LayerTrial, ...] = ()
    layer: str | None = None
    """The layer that lost most; None if there is none to name."""
    why_not: str | None = None
    """Why no layer is named."""


@dataclass(frozen=True, slots=True)
class MetricEvaluator:
    """Measures one metric on the same samples, in this process."""

    metric: str
    dataset: Dataset
    config: AccuracyConfig
    threads: int
    reference: StoredModel | None = None
    """The model that metrics without labels compare with; None for metrics with labels."""

    @classmethod
    def create(
        cls,
        evaluate: EvaluateConfig,
        load_dataset: Callable[[str], Dataset],
        metric: str | None,
        *,
        samples: int,
        threads: int,
        start: StoredModel,
    ) -> MetricEvaluator:
        """Return an evaluator on the data set of ``evaluate.accuracy``.

        Args:
            evaluate: the data set, and the metrics of which the first is the default.
            load_dataset: returns a data set by its name.
            metric: the metric; None for the first that compares with labels, or else the first.
            samples: number of samples.
            threads: threads of one operator.
            start: the model at the start of the chain, with which metrics without labels compare.

        Raises:
            UsageError: there is no such data set or metric.
        """
        if evaluate.accuracy is None:
            raise UsageError(
                "the pipeline has no data set to measure accuracy on",
                remedy="add `evaluate.accuracy`",
            )
        if metric is None:
            metric = _default_metric(evaluate.accuracy.metrics)
        if not is_metric(metric):
            raise UsageError(
                f"--metric {metric}: unknown metric", remedy=f"one of {', '.join(known_metrics())}"
            )
        update = {"metrics": (metric,), "num_samples": samples, "bootstrap": 0, "reference": None}
        config = evaluate.accuracy.model_copy(update=update)
        reference = start if reference_metrics([metric]) else None
        return cls(metric, load_dataset(config.data), config, threads, reference)

    @property
    def better(self) -> Literal["higher", "lower"]:
        """The direction in which the metric improves."""
        return metric_named(self.metric).better

    @property
    def samples(self) -> int:
        """Number of samples that are measured."""
        return self.config.sample_count(len(self.dataset))

    def first_batch(self) -> Batch:
        """Return the first batch of the data set."""
        return next(iter(self.dataset.batches(self.config.batch_size, self.samples)))

    def measure_session(self, session: Session) -> float:
        """Return the metric of an open model."""
        return self._measure(session, None)

    def _measure(self, session: Session, generating: GeneratingModel | None) -> float:
        with ExitStack() as stack:
            reference = None
            if self.reference is not None:
                reference = stack.enter_context(self.reference.open_session(self.threads))
            report = measure_accuracy(
                session, self.dataset, self.config, lambda *_: None, reference, generating
            )
        return report.metrics[0].value

    def measure_artifact(self, artifact: Artifact) -> float:
        """Return the metric of an artifact, measured on its stand-in if it cannot run here."""
        model, _ = StoredModel.of(artifact).runnable()
        with model.open_session(self.threads) as session, limit_calls(model.path):
            return self._measure(session, GeneratingModel(model, self.threads))


def _default_metric(metrics: Sequence[str]) -> str:
    """Return the first metric that compares with labels, or else the first."""
    labelled = [name for name in metrics if not reference_metrics([name])]
    return (labelled or list(metrics))[0]


def search_layers(
    parent: Path,
    child: Path,
    evaluator: MetricEvaluator,
    value: float,
    *,
    each: bool,
    progress: Progress,
) -> LayerSearch:
    """Restore layers of ``parent`` in ``child``, and find the layer that lost most.

    By default the layers are bisected: of two halves, the search continues in the one whose
    restoration improves the metric more. Errors of layers may cancel or add up, so it finds a layer
    with a large effect, not necessarily the largest. It stops where neither half improves anything,
    as after a pass that retrains all layers.

    Args:
        parent: folder of the parent model, in a torch format.
        child: folder of the model that lost accuracy, in a torch format.
        evaluator: measures the metric.
        value: the metric of ``child``.
        each: restore the layers one at a time instead.
        progress: called with ``layers``, the number of trials done, and their maximum.
    """
    from compressor.runtimes.torch.session import TorchSession

    before, after = (TorchSession(folder, evaluator.threads, "cpu") for folder in (parent, child))
    batch = evaluator.first_batch()
    restorable = _restorable_layers(before, after, batch)
    if not restorable:
        return LayerSearch(why_not=_NO_COMMON_LAYER)
    max_trials = len(restorable) if each else 2 * (len(restorable) - 1).bit_length()
    trials: list[LayerTrial] = []
    restorer = _Restorer(before, after, restorable, evaluator, batch)
    unrestored = LayerTrial(restored=(), value=value, error=restorer.output_error())
    one_by_one = each or len(restorable) == 1
    groups = [[name] for name in restorable] if one_by_one else _halves(list(restorable))
    while True:
        candidates = []
        for names in groups:
            candidates.append(restorer.measure(names))
            trials.append(candidates[-1])
            progress("layers", len(trials), max_trials)
        best = max(candidates, key=restorer.rank)
        if restorer.rank(best) <= restorer.rank(unrestored):
            return LayerSearch(tuple(trials), why_not=_NO_IMPROVEMENT)
        if len(best.restored) == 1:
            return LayerSearch(tuple(trials), best.restored[0])
        groups = _halves(list(best.restored))


class _Restorer:
    """Measures ``after`` with the modules of some layers exchanged for those of ``before``."""

    def __init__(
        self,
        before: TorchSession,
        after: TorchSession,
        restorable: dict[str, tuple[str, ...]],
        evaluator: MetricEvaluator,
        batch: Batch,
    ) -> None:
        self._after, self._evaluator = after, evaluator
        self._restorable, self._batch = restorable, batch
        self._outputs = before.run(batch)
        self._parent_modules = dict(before.module.named_modules())
        self._own_modules = dict(after.module.named_modules())

    def measure(self, names: Sequence[str]) -> LayerTrial:
        """Restore layers, measure, and undo the exchange."""
        parts = [part for name in names for part in self._restorable[name]]
        self._exchange(parts, self._parent_modules)
        try:
            error = self.output_error()
            value = self._evaluator.measure_session(self._after)
        finally:
            self._exchange(parts, self._own_modules)
        return LayerTrial(restored=tuple(names), value=value, error=error)

    def output_error(self) -> float:
        """Return the largest relative error of an output against the parent's."""
        outputs = self._after.run(self._batch)
        return max(relative_error(output, self._outputs[name]) for name, output in outputs.items())

    def rank(self, trial: LayerTrial) -> tuple[float, float]:
        """Return a sort key: a better metric first, then a smaller output error."""
        sign = 1 if self._evaluator.better == "higher" else -1
        return sign * trial.value, -trial.error

    def _exchange(self, parts: Sequence[str], modules: dict[str, nn.Module]) -> None:
        from compressor.models.quantized.fake_quantization import replace_module

        for part in parts:
            replace_module(self._after.module, part, modules[part])


def _halves(names: list[str]) -> list[list[str]]:
    return [names[: len(names) // 2], names[len(names) // 2 :]]


def _restorable_layers(
    before: TorchSession, after: TorchSession, batch: Batch
) -> dict[str, tuple[str, ...]]:
    """Return the layers with the same shapes in both models, each with its modules' names."""
    from compressor.runtimes.torch.layers import TorchLayers

    sample = {name: array[:1] for name, array in batch.items()}
    old_layers, new_layers = (TorchLayers.from_session(session) for session in (before, after))
    old, new = old_layers.trace(sample), new_layers.trace(sample)
    module_names = [set(dict(session.module.named_modules())) for session in (before, after)]
    restorable = {}
    for name, output in old.outputs.items():
        parts = tuple(dict.fromkeys((*old_layers.parts[name], *new_layers.parts.get(name, ()))))
        same_shapes = (
            name in new.outputs
            and output.shape == new.outputs[name].shape
            and old.inputs[name].shape == new.inputs[name].shape
        )
        if same_shapes and all(names.issuperset(parts) for names in module_names):
            restorable[name] = parts
    return restorable
