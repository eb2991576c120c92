"""Training of an encoder on pairs: data, loss, temperature, and the saved model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from math import log
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from compressor.artifacts.artifact import Artifact
from compressor.data.contract import Dataset
from compressor.engine.contract import PassContext, PassOutput
from compressor.errors import RequirementError
from compressor.evaluation.outputs import TEXTS
from compressor.models.architecture import Architecture
from compressor.models.capabilities.embeddings import Embeddings
from compressor.models.checkpoint.companions import copy_companions
from compressor.models.checkpoint.description import read_description
from compressor.models.checkpoint.loading import load_module
from passes.align.checks import trained_output
from passes.align.config import AlignConfig
from passes.align.encoder import PairEncoder, has_unit_length, scaling_of
from passes.align.joining import copy_files, join, join_modules
from passes.align.pairs import LABEL, PairedSamples, PairSamples, evaluate_retrieval
from passes.common.contrastive import equal_pairs, infonce, sigmoid_loss
from passes.common.device import prepare_torch
from passes.common.task import Callbacks, RunSettings, Task
from passes.common.training import fit

_TEMPERATURES = {"infonce": 0.07, "sigmoid": 0.1}
"""Temperatures of CLIP (Radford et al. 2021) and SigLIP (Zhai et al. 2023) before training."""
_LARGEST_LOG_SCALE = log(100.0)
"""Limit of CLIP: beyond it, training becomes unstable."""
_FIRST_BIAS = -10.0
_TOKENS = "input_ids"


def align(config: AlignConfig, parent: Artifact, out: Path, context: PassContext) -> PassOutput:
    """Train the parent on pairs, and save it with its tokenizer and processor to ``out``.

    Raises:
        DataError: a data set has no pairs.
        NumericalError: the loss is not finite.
        RequirementError: a field does not apply to the module.
    """
    device = prepare_torch(context)
    architecture, model, copy_companions_to = _load(config, parent, context)
    pair = architecture.require(Embeddings).pair
    outputs = (trained_output(config, architecture),) if pair is None else _texts_last(pair)
    encoder = PairEncoder(
        model,
        outputs,
        normalize=config.similarity == "cosine",
        chunk_size=config.chunk_size,
    )
    encoder.freeze(config.freeze)
    _check_chunks(config, model)
    scaling = Scaling.create(config, model).to(device)
    task = _task(config, encoder, scaling, context)
    callbacks = Callbacks(
        partial(context.progress, "step"), context.note, before_step=scaling.limit
    )
    settings = RunSettings(context.seed, context.work)
    result = fit(encoder, task, config.training, settings, callbacks)
    scaling.limit()
    _note_lengths(config, encoder, task.dataset, context)
    architecture.family.save(model, architecture.config, out)
    copy_companions_to(out)
    summary = {"pairs": len(task.dataset), "outputs": list(outputs)}
    return PassOutput(result.summary() | summary | scaling.summary())


def _load(
    config: AlignConfig, parent: Artifact, context: PassContext
) -> tuple[Architecture, nn.Module, Callable[[Path], None]]:
    """Return the model that is trained, and a function that copies its tokenizer and processor.

    Projections of joined encoders are drawn from the seed of the run.
    """
    first = read_description(parent.model)
    if config.other is None:
        return first, load_module(first, context.device), partial(copy_companions, parent.model)
    second = read_description(context.artifacts["other"].model)
    joined = join(first, second, config.projection_dim)
    encoders = load_module(first), load_module(second)
    torch.manual_seed(context.seed)
    model = join_modules(joined, *encoders, context.device)
    return joined.architecture, model, partial(copy_files, joined, first.folder, second.folder)


class Scaling(nn.Module):
    """Temperature and bias of the products: the model's own, or trained beside it."""

    def __init__(
        self, log_scale: nn.Parameter, bias: nn.Parameter | None, *, is_limited: bool
    ) -> None:
        super().__init__()
        self.log_scale, self.bias, self.is_limited = log_scale, bias, is_limited

    @classmethod
    def create(cls, config: AlignConfig, model: nn.Module) -> Scaling:
        """Return the scaling of a config; a temperature that it sets is written to the model."""
        own = scaling_of(model, "logit_scale")
        default = 1.0 if config.similarity == "dot" else _TEMPERATURES[config.loss]
        log_scale = nn.Parameter(torch.tensor(-log(config.temperature or default)))
        if own is not None:
            if config.temperature is not None:
                own.data.fill_(-log(config.temperature))
            log_scale = own
        log_scale.requires_grad_(config.learn_temperature)
        bias = None
        if config.loss == "sigmoid":
            bias = scaling_of(model, "logit_bias")
            bias = nn.Parameter(torch.tensor(_FIRST_BIAS)) if bias is None else bias
        is_limited = config.learn_temperature and config.loss == "infonce"
        return cls(log_scale, bias, is_limited=is_limited)

    def limit(self, progress: float = 1.0) -> None:
        """Keep a trained temperature of InfoNCE at 0.01 or above, as CLIP does."""
        del progress
        if self.is_limited:
            self.log_scale.data.clamp_(max=_LARGEST_LOG_SCALE)

    def summary(self) -> dict[str, Any]:
        """Return temperature and bias for the manifest."""
        values = {"temperature": 1.0 / self.log_scale.exp().item()}
        return values if self.bias is None else values | {"bias": self.bias.item()}


@dataclass(frozen=True, slots=True)
class _Loss:
    """Contrastive loss of the embeddings of a batch of pairs."""

    name: str
    scaling: Scaling

    def __call__(
        self, outputs: dict[str, Tensor], batch: dict[str, Tensor], progress: float
    ) -> dict[str, Tensor]:
        """Return the loss by its name, a scalar."""
        del progress
        pair = outputs["first"].float(), outputs["second"].float()
        scale, ignored = self.scaling.log_scale.exp(), equal_pairs(*_keys(batch))
        if self.scaling.bias is None:
            return {self.name: infonce(*pair, scale, ignored)}
        return {self.name: sigmoid_loss(*pair, scale, self.scaling.bias, ignored)}


def _keys(batch: dict[str, Tensor]) -> list[Tensor]:
    """Return what pairs of a batch may share: an item of the first kind, or equal texts."""
    keys = [batch[LABEL]]
    if _TOKENS in batch:
        count = len(batch[LABEL])
        keys += list(torch.split(batch[_TOKENS], count))
    return keys


def _task(
    config: AlignConfig, encoder: PairEncoder, scaling: Scaling, context: PassContext
) -> Task:
    """Return data and loss, and the evaluation with the metrics of `evaluate`."""
    is_shared = len(encoder.outputs) == 1
    view = PairedSamples if is_shared else PairSamples
    names = ("reverse_{}", "{}")
    if not is_shared:
        names = (f"{{}}:{encoder.outputs[0]}", f"{{}}:{encoder.outputs[1]}")
    validation = None
    if config.validation is not None:
        validation = view(context.data(config.validation), config.validation)
    return Task(
        view(context.data(config.train), config.train),
        _Loss(config.loss, scaling),
        validation,
        scaling,
        partial(evaluate_retrieval, names=names),
        keeps_frozen=True,
    )


def _texts_last(pair: tuple[str, str]) -> tuple[str, str]:
    """Return two outputs, embeddings of texts as the second."""
    return (pair[1], pair[0]) if pair[0] == TEXTS else pair


def _check_chunks(config: AlignConfig, model: nn.Module) -> None:
    """Check that no batch normalization would use the statistics of a chunk.

    Raises:
        RequirementError: one would.
    """
    norms = torch.nn.modules.batchnorm._BatchNorm
    learns = config.training.batch_norm == "learn"
    if config.chunk_size is None or not learns:
        return
    if any(isinstance(module, norms) for module in model.modules()):
        raise RequirementError(
            "`chunk_size`: batch normalizations would use the statistics of chunks",
            remedy="set `training.batch_norm: freeze`, or leave `chunk_size` out",
        )


def _note_lengths(
    config: AlignConfig, encoder: PairEncoder, pairs: Dataset, context: PassContext
) -> None:
    """Note that `evaluate` compares embeddings of any length, where the training did not."""
    if config.similarity == "dot" or len(encoder.outputs) != 1:
        return
    if not has_unit_length(encoder, pairs):
        context.note(
            f"`{encoder.outputs[0]}` has vectors of any length: cosines were trained, and "
            "`evaluate` ranks by products; set `similarity: dot`, or scale the vectors when using "
            "them"
        )
