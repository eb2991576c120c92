"""Training of an encoder on pairs: the model, its data, and what is saved."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import nn

from compressor.artifacts.artifact import Artifact
from compressor.data.contract import Dataset
from compressor.engine.contract import PassContext, PassOutput
from compressor.errors import RequirementError
from compressor.models.architecture import Architecture
from compressor.models.capabilities.embeddings import Embeddings
from compressor.models.checkpoint.companions import copy_companions
from compressor.models.checkpoint.description import read_description
from compressor.models.checkpoint.loading import load_module
from passes.align.checks import trained_output
from passes.align.config import AlignConfig
from passes.align.encoder import PairEncoder, has_unit_length
from passes.align.joining import copy_files, join, join_modules
from passes.align.loss import PairLoss, Scaling, open_teacher, texts_last
from passes.align.pairs import PairedSamples, PairSamples, evaluate_retrieval
from passes.common.device import prepare_torch
from passes.common.task import Callbacks, RunSettings, Task
from passes.common.training import fit


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
    outputs = (trained_output(config, architecture),) if pair is None else texts_last(pair)
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
    callbacks = replace(Callbacks.of(context), before_step=scaling.limit)
    result = fit(encoder, task, config.training, RunSettings.of(context), callbacks)
    scaling.limit()
    scaling.store()
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
    train = view(context.data(config.train), config.train)
    return Task(
        train,
        PairLoss(config.loss, scaling, open_teacher(config, train.input_names, context)),
        validation,
        scaling,
        partial(evaluate_retrieval, names=names),
        keeps_frozen=True,
    )


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
