"""Choice of the layers that stay in float, so that the accuracy drop stays below a limit."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from calibration.samples import Samples
from compressor.engine.contract import PassContext
from compressor.errors import RequirementError
from compressor.evaluation.metrics import IGNORED_LABEL
from compressor.models.capabilities.training_heads import TrainingHeads
from compressor.models.quantized.fake_quantization import IntegerLayer
from passes.common.device import device_of, tensors_from_batch
from passes.qat.config import KeepFloat

BuildModel = Callable[[Collection[str]], nn.Module]
"""Maps the names of the integer layers to the model in which all others are in float."""
_BATCH = 32


class FloatComparison:
    """Comparison of quantized models with the float model."""

    def __init__(
        self,
        config: KeepFloat,
        heads: TrainingHeads,
        float_model: nn.Module,
        samples: Samples,
        context: PassContext,
    ) -> None:
        self.config, self.heads, self.float_model = config, heads, float_model
        self.samples, self.context = samples, context
        self.dataset = context.data(config.data)
        predictions = self._predict(float_model, "evaluate the float model")
        self.target = predictions
        if config.metric == "top1":
            labels = [batch[str(self.dataset.label_name)] for batch in self.dataset.batches(_BATCH)]
            self.target = torch.from_numpy(np.concatenate(labels))
        self.float_metric = self._metric(predictions)
        """The metric of the float model."""

    def metric(self, module: nn.Module) -> float:
        """Return the metric of a quantized model."""
        return self._metric(self._predict(module, f"evaluate on {self.config.data}"))

    def _metric(self, predictions: Tensor) -> float:
        counted = self.target != IGNORED_LABEL
        return float((predictions == self.target)[counted].float().mean())

    @torch.inference_mode()
    def _predict(self, module: nn.Module, activity: str) -> Tensor:
        predictions: list[Tensor] = []
        for batch in self.dataset.batches(_BATCH):
            tensors = tensors_from_batch(batch, device_of(module))
            logits = module(**{name: tensors[name] for name in self.dataset.input_names})["logits"]
            predictions.append(logits.argmax(dim=-1).cpu())
            done = sum(map(len, predictions))
            self.context.progress(activity, done, len(self.dataset), {})
        return torch.cat(predictions)

    def divergences(self, module: nn.Module) -> dict[str, float]:
        """Return the mean KL divergence from the float model with one integer layer at a time.

        Args:
            module: A model with integer layers; all are integer again afterwards.
        """
        layers = {
            name: layer for name, layer in module.named_modules() if isinstance(layer, IntegerLayer)
        }
        indices = self.samples.subset(self.config.num_samples)
        batches = [
            tensors_from_batch(
                self.samples.dataset.batch(indices[start : start + _BATCH]), device_of(module)
            )
            for start in range(0, len(indices), _BATCH)
        ]
        targets = [self._logits(self.float_model, batch) for batch in batches]
        divergences = {}
        for layer in layers.values():
            layer.active = False
        for number, (name, layer) in enumerate(layers.items(), start=1):
            layer.active = True
            terms = [
                _divergence(target[head], self._logits(module, batch)[head])
                for batch, target in zip(batches, targets, strict=True)
                for head in target
            ]
            divergences[name] = float(torch.stack(terms).mean())
            layer.active = False
            self.context.progress("rank layers", number, len(layers), {})
        for layer in layers.values():
            layer.active = True
        return divergences

    @torch.inference_mode()
    def _logits(self, module: nn.Module, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        outputs = module(**{name: batch[name] for name in self.samples.dataset.input_names})
        return self.heads.logits(module, outputs)


def _divergence(target: Tensor, logits: Tensor) -> Tensor:
    """Return the mean of KL(target ‖ logits) over all positions, from logits [..., C]."""
    log_probabilities = (
        functional.log_softmax(logits.float(), dim=-1),
        functional.log_softmax(target.float(), dim=-1),
    )
    divergence = functional.kl_div(*log_probabilities, reduction="none", log_target=True)
    return divergence.sum(dim=-1).mean().cpu()


@dataclass(frozen=True, slots=True)
class FloatLayers:
    """Layers that are kept in float, and the metrics that led to them."""

    config: KeepFloat
    names: tuple[str, ...]
    """Layers kept in float, the most sensitive first."""
    divergences: Mapping[str, float]
    """Divergence of each layer that could be integer."""
    metrics: tuple[float, ...]
    """Metric with 0, 1, 2, … of the layers in float."""
    float_metric: float
    """Metric of the float model."""

    @property
    def limit(self) -> float:
        """Smallest metric that the config allows."""
        return self.float_metric - self.config.max_drop

    def reasons(self) -> dict[str, str]:
        """Return the reason of each layer, as saved in quantization.json."""
        return {
            name: f"number {rank} of {len(self.divergences)} by divergence "
            f"({self.divergences[name]:.3g}); with it {self.config.metric} rose from "
            f"{before:.4f} to {after:.4f}"
            for rank, (name, before, after) in enumerate(
                zip(self.names, self.metrics, self.metrics[1:], strict=False), start=1
            )
        }

    def summary(self) -> dict[str, Any]:
        """Return ranking and metrics as JSON values for the manifest."""
        ranking = [
            {
                "layer": name,
                "divergence": self.divergences[name],
                "kept_float": name in self.names,
            }
            for name in _rank(self.divergences)
        ]
        metrics = {"float": self.float_metric, "found": list(self.metrics)}
        return {"sensitivity": ranking, "keep_float": metrics}


def _rank(divergences: Mapping[str, float]) -> list[str]:
    return sorted(divergences, key=lambda name: -divergences[name])


def choose_float_layers(
    divergences: Mapping[str, float], build: BuildModel, comparison: FloatComparison
) -> FloatLayers:
    """Keep layers in float, the most sensitive first, until the metric reaches its limit.

    Args:
        divergences: Divergence of each layer that can be integer.
        build: Builds a model to evaluate.
        comparison: Evaluates the models.

    Returns:
        The layers. The metric is still below the limit if the config allows no more layers.
    """
    config = comparison.config
    ranked = _rank(divergences)
    limit = comparison.float_metric - config.max_drop
    names: list[str] = []
    metrics = [comparison.metric(build(list(divergences)))]
    while metrics[-1] < limit and len(names) < min(config.max_layers, len(ranked) - 1):
        names.append(ranked[len(names)])
        integer = [name for name in divergences if name not in names]
        metrics.append(comparison.metric(build(integer)))
    return FloatLayers(config, tuple(names), divergences, tuple(metrics), comparison.float_metric)


def check_drop(layers: FloatLayers, context: PassContext, *, trains: bool) -> None:
    """Check that the metric drops by `max_drop` at most; if training follows, only note it.

    Raises:
        RequirementError: The metric is below the limit, and no training follows.
    """
    metric = layers.metrics[-1]
    if metric >= layers.limit:
        return
    shortfall = (
        f"{layers.config.metric} is {metric:.4f} with {len(layers.names)} layers in float and "
        f"{layers.metrics[0]:.4f} with none, below the limit of {layers.limit:.4f} "
        f"({layers.float_metric:.4f} in float, less `max_drop`)"
    )
    if not trains:
        raise RequirementError(
            f"`keep_float` cannot meet its limit: {shortfall}",
            remedy="raise `max_layers` or `max_drop`, try another observer, or train with "
            "`fine_tuning`",
        )
    context.note(f"before fine-tuning, {shortfall}")
