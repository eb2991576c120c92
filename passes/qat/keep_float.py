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
        return float((predictions == self.target).float().mean())

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
    """Layers that are kept in float."""

    reasons: dict[str, str]
    """Layer to the reason, as saved in quantization.json."""
    summary: dict[str, Any]
    """Ranking and metrics, for the manifest."""


def choose_float_layers(
    config: KeepFloat,
    divergences: Mapping[str, float],
    build: BuildModel,
    comparison: FloatComparison,
) -> tuple[FloatLayers, str | None]:
    """Keep layers in float, in the order of their divergence, until the metric is high enough.

    Args:
        config: Metric and limits.
        divergences: Layer to its divergence, for all layers that can be integer.
        build: Builds a model to evaluate.
        comparison: Evaluates the models.

    Returns:
        The layers, and a message if the metric is still too low with the most layers allowed.
    """
    ranked = sorted(divergences, key=lambda name: -divergences[name])
    limit = comparison.float_metric - config.max_drop
    kept: list[str] = []
    metrics = [comparison.metric(build(list(divergences)))]
    while metrics[-1] < limit and len(kept) < min(config.max_layers, len(ranked) - 1):
        kept.append(ranked[len(kept)])
        integer = [name for name in divergences if name not in kept]
        metrics.append(comparison.metric(build(integer)))
    reasons = {
        name: f"number {rank} of {len(ranked)} by divergence ({divergences[name]:.3g}); "
        f"with it {config.metric} rose from {before:.4f} to {after:.4f}"
        for rank, (name, before, after) in enumerate(
            zip(kept, metrics, metrics[1:], strict=False), start=1
        )
    }
    ranking = [
        {"layer": name, "divergence": divergences[name], "kept_float": name in kept}
        for name in ranked
    ]
    summary = {
        "sensitivity": ranking,
        "keep_float": {"float": comparison.float_metric, "found": metrics},
    }
    shortfall = None
    if metrics[-1] < limit:
        shortfall = (
            f"{config.metric} is {metrics[-1]:.4f} with {len(kept)} layers in float and "
            f"{metrics[0]:.4f} with none, below the limit of {limit:.4f} "
            f"({comparison.float_metric:.4f} in float, less `max_drop`)"
        )
    return FloatLayers(reasons, summary), shortfall


def check_shortfall(shortfall: str | None, context: PassContext, *, trains: bool) -> None:
    """Note that the metric is too low before training, or raise if no training follows.

    Raises:
        RequirementError: The metric is too low, and no training follows.
    """
    if shortfall is None:
        return
    if not trains:
        raise RequirementError(
            f"`keep_float` cannot meet its limit: {shortfall}",
            remedy="raise `max_layers` or `max_drop`, try another observer, or train with "
            "`fine_tuning`",
        )
    context.note(f"before fine-tuning, {shortfall}")
