"""Layers of a model put back as they were in its parent, to see what the rest of it loses without them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict

from compressor.analysis.tensors import relative_error
from compressor.data.contract import Batch, Dataset
from compressor.errors import UsageError
from compressor.evaluation.accuracy import measure_accuracy
from compressor.evaluation.embeddings import answers_with_embeddings, measure_embeddings
from compressor.evaluation.metrics import METRICS, referring
from compressor.evaluation.records import AccuracyConfig, EvaluateConfig
from compressor.runtimes.formats import StoredModel
from compressor.runtimes.session import Session

if TYPE_CHECKING:
    from compressor.artifacts.store import Artifact
    from compressor.runtimes.torch.layers import TorchLayers
    from compressor.runtimes.torch.session import TorchSession

Progress = Callable[[str, int, int], None]


class LayerTrial(BaseModel):
    """Some layers put back, and what the model was worth then."""

    model_config = ConfigDict(frozen=True)

    restored: tuple[str, ...]
    value: float
    error: float
    """Σ(b−a)² / Σa² of the model's answers against its parent's: what decides between equal values."""


@dataclass(frozen=True, slots=True)
class Ruler:
    """Measures one metric on the same samples, in this process."""

    metric: str
    dataset: Dataset
    config: AccuracyConfig
    threads: int

    @classmethod
    def of(
        cls,
        evaluate: EvaluateConfig,
        dataset: Callable[[str], Dataset],
        threads: int,
        metric: str,
        samples: int,
    ) -> Ruler:
        """For a metric on the set of ``evaluate.accuracy``.

        Raises:
            UsageError: there is no such set, or the metric needs another model to compare with.
        """
        if evaluate.accuracy is None:
            raise UsageError(
                "the pipeline does not say what accuracy is measured on",
                remedy="add `evaluate.accuracy`",
            )
        if metric not in METRICS or referring([metric]):
            known = [name for name in METRICS if not referring([name])]
            raise UsageError(
                f"--metric {metric}: expected one that labels decide",
                remedy=f"one of {', '.join(known)}",
            )
        update = {"metrics": (metric,), "num_samples": samples, "bootstrap": 0, "reference": None}
        return cls(
            metric,
            dataset(evaluate.accuracy.data),
            evaluate.accuracy.model_copy(update=update),
            threads,
        )

    @property
    def better(self) -> Literal["higher", "lower"]:
        """Which way is better."""
        return METRICS[self.metric].better

    @property
    def samples(self) -> int:
        """How many it looks at."""
        return min(self.config.num_samples or len(self.dataset), len(self.dataset))

    def from_session(self, session: Session) -> float:
        """The metric of an open model."""
        measure = measure_embeddings if answers_with_embeddings(session) else measure_accuracy
        return measure(session, self.dataset, self.config, lambda *_: None).metrics[0].value

    def of_artifact(self, artifact: Artifact) -> float:
        """Return the metric of an artifact, measured on its stand-in if it cannot run here."""
        model, _ = StoredModel.of(artifact).runnable()
        with model.open_session(self.threads) as session:
            return self.from_session(session)


def search_layers(
    parent: Path, child: Path, ruler: Ruler, value: float, *, each: bool, progress: Progress
) -> tuple[tuple[LayerTrial, ...], str | None, str | None]:
    """Put layers of ``parent`` back into ``child``: what was tried, the layer that lost most, and why there is none.

    By halves: of two halves of the layers the one is looked into whose return brings more back. Errors of layers may cancel
    or add up, so this finds a layer that matters much, not surely the one that matters most. It stops where neither half brings
    anything back, as of a pass that trains all layers anew.

    Args:
        parent: its model folder.
        child: that of the model that lost something.
        ruler: measures.
        value: the metric of ``child``.
        each: one layer at a time instead.
        progress: called as (what, done, total).
    """
    from compressor.models.quantized.fake_quantization import replace_module
    from compressor.runtimes.torch.session import TorchSession

    before, after = (TorchSession(folder, ruler.threads, "cpu") for folder in (parent, child))
    batch = next(iter(ruler.dataset.batches(ruler.config.batch_size, ruler.samples)))
    wanted = before.run(batch)
    parts = _common(before, after, batch)
    if not parts:
        return (
            (),
            None,
            "no layer has the same inputs and outputs in both: widths were cut, or it is another model",
        )
    modules = [dict(one.module.named_modules()) for one in (before, after)]
    trials: list[LayerTrial] = []
    most = len(parts) if each else 2 * (len(parts) - 1).bit_length()

    def tried(names: Sequence[str]) -> LayerTrial:
        chosen = [part for name in names for part in parts[name]]
        for part in chosen:
            replace_module(after.module, part, modules[0][part])
        try:
            error = _apart(after.run(batch), wanted)
            trials.append(
                LayerTrial(restored=tuple(names), value=ruler.from_session(after), error=error)
            )
        finally:
            for part in chosen:
                replace_module(after.module, part, modules[1][part])
        progress("layers", len(trials), most)
        return trials[-1]

    sign = 1 if ruler.better == "higher" else -1
    own = LayerTrial(restored=(), value=value, error=_apart(after.run(batch), wanted))

    def gain(one: LayerTrial) -> tuple[float, float]:
        return sign * one.value, -one.error

    groups = [[name] for name in parts] if each or len(parts) == 1 else _halves(list(parts))
    while True:
        best = max((tried(names) for names in groups), key=gain)
        if gain(best) <= gain(own):
            return (
                tuple(trials),
                None,
                "nothing is won by putting layers back: all of them changed together",
            )
        if len(best.restored) == 1:
            return tuple(trials), best.restored[0], None
        groups = _halves(list(best.restored))


def _halves(names: list[str]) -> list[list[str]]:
    return [names[: len(names) // 2], names[len(names) // 2 :]]


def _apart(answers: Batch, wanted: Batch) -> float:
    return max(relative_error(value, wanted[name]) for name, value in answers.items())


def _common(before: TorchSession, after: TorchSession, batch: Any) -> dict[str, tuple[str, ...]]:
    """Layers that read and make arrays of the same shapes in both, and the modules that make each of them up, in both."""
    from compressor.runtimes.torch.layers import TorchLayers

    first = {name: array[:1] for name, array in batch.items()}
    found: list[TorchLayers] = [TorchLayers.from_session(one) for one in (before, after)]
    old, new = (one.trace(first) for one in found)
    known = [set(dict(one.module.named_modules())) for one in found]
    common = {}
    for name, value in old.outputs.items():
        parts = tuple(dict.fromkeys((*found[0].parts[name], *found[1].parts.get(name, ()))))
        same = name in new.outputs and value.shape == new.outputs[name].shape
        if (
            same
            and old.inputs[name].shape == new.inputs[name].shape
            and all(set(parts) <= one for one in known)
        ):
            common[name] = parts
    return common
