"""Distillation of a student: build it, train it with the teacher's soft labels, save it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from compressor.artifacts.artifact import Artifact
from compressor.engine.contract import PassContext, PassOutput
from compressor.models.architecture import Architecture
from compressor.models.capabilities.feature_taps import FeatureTaps
from compressor.models.capabilities.training_heads import TrainingHeads
from compressor.models.checkpoint.description import read_description
from compressor.models.checkpoint.loading import load_module
from passes.common.device import prepare_torch
from passes.common.losses import probe_outputs, shared_heads
from passes.common.task import Callbacks, RunSettings, Task, TrainingResult
from passes.common.training import fit
from passes.common.training_pass import save_trained
from passes.distill.config import DistillConfig
from passes.distill.feedback import FeedbackCallback
from passes.distill.losses import DistillationLoss, Matching
from passes.distill.module_taps import ModuleOutputs, record_outputs
from passes.distill.student import copy_matching, student_architecture

if TYPE_CHECKING:
    from torch import nn


def distill(
    config: DistillConfig, parent: Artifact, teacher: Artifact, out: Path, context: PassContext
) -> PassOutput:
    """Train the student that the config describes, and save it to ``out``."""
    device = prepare_torch(context)
    description = read_description(parent.model)
    architecture = student_architecture(config.student, description)
    teacher_module = load_module(teacher.model, context.device).requires_grad_(False)
    if config.student.parent is not None:
        student = load_module(description, context.device)
    else:
        student = architecture.family.build(architecture.config).to(device)
    copied = None
    if config.student.slim is not None:
        copied = copy_matching(student, teacher_module)
    modules = {} if config.features is None else config.features.modules
    with (
        record_outputs(student, tuple(modules)) as student_modules,
        record_outputs(teacher_module, tuple(dict.fromkeys(modules.values()))) as teacher_modules,
    ):
        recorded = student_modules, teacher_modules
        result = _train(config, architecture, (student, teacher_module), recorded, context)
    save_trained(architecture, student, parent.model, out)
    return PassOutput(result.summary() | ({} if copied is None else {"copied_tensors": copied}))


def _train(
    config: DistillConfig,
    architecture: Architecture,
    models: tuple[nn.Module, nn.Module],
    recorded: tuple[ModuleOutputs, ModuleOutputs],
    context: PassContext,
) -> TrainingResult:
    """Train the student, the first of the models, with the outputs of the second."""
    student, teacher = models
    dataset = context.data(config.train)
    outputs = probe_outputs(student, teacher, dataset)
    heads = architecture.require(TrainingHeads)
    shared = shared_heads(
        heads.logits(student, outputs[0]), heads.logits(teacher, outputs[1]), context.note
    )
    matching = None
    if config.features is not None:
        names = config.features.names
        if not names and not config.features.modules:
            names = architecture.require(FeatureTaps).names
        matching = Matching.create(names, config.features.modules, outputs, recorded)
    loss = DistillationLoss(config, heads, student, teacher, dataset.input_names, shared, matching)
    validation = context.data(config.validation) if config.validation else None
    callbacks = Callbacks.of(context)
    if config.feedback is not None and validation is not None:
        feedback = FeedbackCallback(
            config.feedback, config.training.steps, dataset.strata(), validation.strata()
        )
        callbacks = replace(callbacks, on_evaluation=feedback)
    task = Task(dataset, loss, validation, None if matching is None else matching.matcher)
    return fit(student, task, config.training, RunSettings.of(context), callbacks)
