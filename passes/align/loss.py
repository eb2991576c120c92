"""Loss of a batch of pairs: temperature and bias, soft labels of a teacher."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import log
from typing import Any

import torch
from torch import Tensor, nn

from compressor.engine.contract import PassContext
from compressor.evaluation.outputs import TEXTS
from compressor.models.capabilities.embeddings import Embeddings
from compressor.models.checkpoint.description import read_description
from compressor.models.checkpoint.loading import load_module
from passes.align.checks import DIRECTED_SCALES, SCALE, best_output
from passes.align.config import AlignConfig
from passes.align.encoder import PairEncoder, scaling_of
from passes.align.pairs import LABEL
from passes.common.contrastive import equal_pairs, infonce, sigmoid_loss, soft_infonce

_TEMPERATURES = {"infonce": 0.07, "sigmoid": 0.1}
"""Temperatures of CLIP (Radford et al. 2021) and SigLIP (Zhai et al. 2023) before training."""
_LARGEST_LOG_SCALE = log(100.0)
"""Limit of CLIP: beyond it, training becomes unstable."""
_FIRST_BIAS = -10.0
_TOKENS = "input_ids"


class Scaling(nn.Module):
    """Temperature and bias of the products: the model's own, or trained beside it."""

    def __init__(
        self,
        log_scale: nn.Parameter,
        bias: nn.Parameter | None,
        copies: Sequence[nn.Parameter] = (),
        *,
        is_limited: bool,
    ) -> None:
        """Create a scaling.

        Args:
            log_scale: logarithm of the inverse temperature.
            bias: of the sigmoid loss.
            copies: parameters of the model that get the scale when `store` is called.
            is_limited: True to keep the temperature at 0.01 or above.
        """
        super().__init__()
        self.log_scale, self.bias, self.is_limited = log_scale, bias, is_limited
        self._copies = tuple(copies)

    @classmethod
    def create(cls, config: AlignConfig, model: nn.Module) -> Scaling:
        """Return the scaling of a config; a temperature that it sets is written to the model."""
        own = scaling_of(model, SCALE)
        directed = [p for name in DIRECTED_SCALES if (p := scaling_of(model, name)) is not None]
        default = 1.0 if config.similarity == "dot" else _TEMPERATURES[config.loss]
        log_scale = nn.Parameter(torch.tensor(-log(config.temperature or default)))
        if own is not None:
            if config.temperature is not None:
                own.data.fill_(-log(config.temperature))
            log_scale = own
        elif directed and config.temperature is None:
            log_scale.data.fill_(sum(p.item() for p in directed) / len(directed))
        for parameter in directed:
            parameter.requires_grad_(False)
        log_scale.requires_grad_(config.learn_temperature)
        bias = None
        if config.loss == "sigmoid":
            bias = scaling_of(model, "logit_bias")
            bias = nn.Parameter(torch.tensor(_FIRST_BIAS)) if bias is None else bias
        is_limited = config.learn_temperature and config.loss == "infonce"
        is_new = config.learn_temperature or config.temperature is not None
        return cls(log_scale, bias, directed if is_new else (), is_limited=is_limited)

    def limit(self, progress: float = 1.0) -> None:
        """Keep a trained temperature of InfoNCE at 0.01 or above, as CLIP does."""
        del progress
        if self.is_limited:
            self.log_scale.data.clamp_(max=_LARGEST_LOG_SCALE)

    def store(self) -> None:
        """Write the scale to the parameters of a model that has one for each direction."""
        for parameter in self._copies:
            parameter.data.fill_(self.log_scale.item())

    def summary(self) -> dict[str, Any]:
        """Return temperature and bias for the manifest."""
        values = {"temperature": 1.0 / self.log_scale.exp().item()}
        return values if self.bias is None else values | {"bias": self.bias.item()}


@dataclass(frozen=True, slots=True)
class Teacher:
    """A model whose products are soft labels."""

    encoder: PairEncoder
    input_names: tuple[str, ...]
    weight: float

    @torch.no_grad()
    def products(self, batch: dict[str, Tensor]) -> Tensor:
        """Return the products of all pairs of a batch, [N, N]."""
        outputs = self.encoder(**{name: batch[name] for name in self.input_names})
        products: Tensor = outputs["first"].float() @ outputs["second"].float().T
        return products


@dataclass(frozen=True, slots=True)
class PairLoss:
    """Contrastive loss of the embeddings of a batch of pairs."""

    name: str
    scaling: Scaling
    teacher: Teacher | None

    def __call__(
        self, outputs: dict[str, Tensor], batch: dict[str, Tensor], progress: float
    ) -> dict[str, Tensor]:
        """Return the loss by its name, and that of soft labels as ``soft``, a scalar each."""
        del progress
        pair = outputs["first"].float(), outputs["second"].float()
        scale, teacher = self.scaling.log_scale.exp(), self.teacher
        if teacher is None:
            return {self.name: self._hard(pair, scale, batch)}
        soft = teacher.weight * soft_infonce(*pair, teacher.products(batch), scale)
        if teacher.weight == 1:
            return {"soft": soft}
        return {self.name: (1 - teacher.weight) * self._hard(pair, scale, batch), "soft": soft}

    def _hard(self, pair: tuple[Tensor, Tensor], scale: Tensor, batch: dict[str, Tensor]) -> Tensor:
        ignored = equal_pairs(*_keys(batch))
        if self.scaling.bias is None:
            return infonce(*pair, scale, ignored)
        return sigmoid_loss(*pair, scale, self.scaling.bias, ignored)


def _keys(batch: dict[str, Tensor]) -> list[Tensor]:
    """Return what pairs of a batch may share: an item of the first kind, or equal texts."""
    keys = [batch[LABEL]]
    if _TOKENS in batch:
        count = len(batch[LABEL])
        keys += list(torch.split(batch[_TOKENS], count))
    return keys


def open_teacher(
    config: AlignConfig, input_names: tuple[str, ...], context: PassContext
) -> Teacher | None:
    """Return the teacher in eval mode; None without one."""
    if config.teacher is None:
        return None
    description = read_description(context.artifacts["teacher"].model)
    pair = description.require(Embeddings).pair
    outputs = (best_output(description),) if pair is None else texts_last(pair)
    model = load_module(description, context.device).requires_grad_(False)
    normalize = config.similarity == "cosine"
    encoder = PairEncoder(model, outputs, normalize=normalize, chunk_size=None)
    encoder.eval()
    return Teacher(encoder, input_names, config.soft_weight)


def texts_last(pair: tuple[str, str]) -> tuple[str, str]:
    """Return two outputs, embeddings of texts as the second."""
    return (pair[1], pair[0]) if pair[0] == TEXTS else pair
