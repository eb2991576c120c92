"""Which layers must stay in float, so that the model answers as before."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any, cast

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
from passes.qat.step import KeepFloat, QatConfig

Build = Callable[[Collection[str]], nn.Module]
"""Names of layers to the model in which these are integer."""
_BATCH = 32


class Answers:
    """What models say, held against the float one."""

    def __init__(
        self,
        wanted: KeepFloat,
        heads: TrainingHeads,
        teacher: nn.Module,
        samples: Samples,
        context: PassContext,
    ) -> None:
        self.wanted, self.heads, self.teacher, self.context = wanted, heads, teacher, context
        self.samples = samples
        self.dataset = context.data(wanted.data)
        self.float_answers = self._answers(teacher, "float answers")
        self.right = self.float_answers
        if wanted.metric == "top1":
            labels = [batch[str(self.dataset.label_name)] for batch in self.dataset.batches(_BATCH)]
            self.right = torch.from_numpy(np.concatenate(labels))

    def quality(self, module: nn.Module) -> float:
        """The wanted metric."""
        return self._metric(self._answers(module, f"answers to {self.wanted.data}"))

    @property
    def float_quality(self) -> float:
        """Of the float model itself."""
        return self._metric(self.float_answers)

    def divergences(self, module: nn.Module) -> dict[str, float]:
        """Each integer layer alone, the others in float: the mean KL of what the float model says from what is said then."""
        layers = {
            name: one for name, one in module.named_modules() if isinstance(one, IntegerLayer)
        }
        places = self.samples.subset(self.wanted.num_samples)
        parts = [places[start : start + _BATCH] for start in range(0, len(places), _BATCH)]
        batches = [
            tensors_from_batch(self.samples.dataset.batch(part), device_of(module))
            for part in parts
        ]
        wanted = [self._heads(self.teacher, batch) for batch in batches]
        found = {}
        for one in layers.values():
            one.active = False
        for number, (name, one) in enumerate(layers.items(), start=1):
            one.active = True
            terms = [
                _divergence(said[head], self._heads(module, batch)[head])
                for batch, said in zip(batches, wanted, strict=True)
                for head in said
            ]
            found[name] = float(torch.stack(terms).mean())
            one.active = False
            self.context.progress("rank layers", number, len(layers), {})
        for one in layers.values():
            one.active = True
        return found

    @torch.inference_mode()
    def _heads(self, module: nn.Module, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        outputs = module(**{name: batch[name] for name in self.samples.dataset.input_names})
        return self.heads.logits(module, outputs)

    @torch.inference_mode()
    def _answers(self, module: nn.Module, what: str) -> Tensor:
        answers: list[Tensor] = []
        for batch in self.dataset.batches(_BATCH):
            tensors = tensors_from_batch(batch, device_of(module))
            logits = module(**{name: tensors[name] for name in self.dataset.input_names})["logits"]
            answers.append(logits.argmax(dim=-1).cpu())
            self.context.progress(what, sum(map(len, answers)), len(self.dataset), {})
        return torch.cat(answers)

    def _metric(self, answers: Tensor) -> float:
        return float((answers == self.right).float().mean())


def _divergence(wanted: Tensor, said: Tensor) -> Tensor:
    logs = (
        functional.log_softmax(said.float(), dim=-1),
        functional.log_softmax(wanted.float(), dim=-1),
    )
    return functional.kl_div(*logs, reduction="none", log_target=True).sum(dim=-1).mean().cpu()


def choose(
    config: QatConfig,
    divergence: Mapping[str, float],
    build: Build,
    answers: Answers,
    context: PassContext,
) -> tuple[dict[str, str], dict[str, Any]]:
    """The layers that stay in float and why; and what the manifest says of the choice.

    Args:
        config: of the pass.
        divergence: of each layer that may be integer.
        build: makes a model in which some are.
        answers: judges it.
        context: of the pass.

    Raises:
        RequirementError: as many as may stay in float do, it is not enough, and no training follows.
    """
    wanted = cast("KeepFloat", config.keep_float)
    names = list(divergence)
    ranked = sorted(divergence, key=lambda name: -divergence[name])
    allowed = answers.float_quality - wanted.max_drop
    kept: list[str] = []
    steps = [answers.quality(build(names))]
    while steps[-1] < allowed and len(kept) < min(wanted.at_most, len(ranked) - 1):
        kept.append(ranked[len(kept)])
        steps.append(answers.quality(build([name for name in names if name not in kept])))
    told = (
        f"{wanted.metric} {steps[-1]:.4f} with {len(kept)} layers in float, of {answers.float_quality:.4f} in float; "
        f"all integer {steps[0]:.4f}"
    )
    if steps[-1] < allowed:
        if config.fine_tuning is None:
            raise RequirementError(
                f"`keep_float` cannot hold its limit: {told}, and no less than {allowed:.4f} is allowed",
                remedy="allow more (`at_most`, `max_drop`), try another observer, or train with `fine_tuning`",
            )
        context.note(f"{told}: the limit is {allowed:.4f}, and training follows")
    why = {
        name: f"number {place} of {len(ranked)} by divergence ({divergence[name]:.3g}); with it {wanted.metric} rose from "
        f"{before:.4f} to {after:.4f}"
        for place, (name, before, after) in enumerate(
            zip(kept, steps, steps[1:], strict=False), start=1
        )
    }
    ranking = [
        {"layer": name, "divergence": divergence[name], "kept_float": name in kept}
        for name in ranked
    ]
    return why, {
        "sensitivity": ranking,
        "keep_float": {"float": answers.float_quality, "found": steps},
    }
