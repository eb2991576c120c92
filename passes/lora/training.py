"""Training of an adapter: put it into the base, train it, and write it in PEFT's layout."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from peft import IA3Config
from peft import LoraConfig as PeftLoraConfig
from transformers.pytorch_utils import Conv1D

from compressor.artifacts.artifact import Artifact
from compressor.artifacts.errors_from_os import writing
from compressor.engine.contract import PassContext, PassOutput
from compressor.errors import RequirementError
from compressor.foreign_files.libraries import library_errors
from compressor.models.adapters.base import AdapterBase, model_digest, write_base
from compressor.models.adapters.layout import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from compressor.models.adapters.peft_modules import adapter_tensors
from compressor.models.architecture import Architecture
from compressor.models.capabilities.cached_generation import CachedGeneration
from compressor.models.capabilities.training_heads import TrainingHeads
from compressor.models.checkpoint.description import read_description
from compressor.models.checkpoint.loading import load_module
from passes.common.config import TrainingConfig
from passes.common.device import prepare_torch
from passes.common.losses import (
    distillation_losses,
    hard_cross_entropy,
    probe_outputs,
    shared_heads,
)
from passes.common.task import Callbacks, RunSettings, Task
from passes.common.training import fit
from passes.lora.config import LoraConfig
from passes.lora.targets import Targets, model_type_of, resolve_targets

if TYPE_CHECKING:
    from peft import PeftConfig
    from torch import Tensor, nn

_CAUSAL_LM = "CAUSAL_LM"


def train_adapter(
    config: LoraConfig, parent: Artifact, teacher: Artifact | None, out: Path, context: PassContext
) -> PassOutput:
    """Train an adapter of the parent, and write it with ``base.json`` to ``out``.

    Args:
        config: of the pass.
        parent: the base, whose weights stay as they are; packed ones are unpacked.
        teacher: gives the soft labels; None for labels alone.
        out: an empty folder.
        context: of the pass.

    Raises:
        RequirementError: PEFT has no default targets for the model, or they match nothing.
        NumericalError: the loss is not finite.
    """
    prepare_torch(context)
    description = read_description(parent.model)
    base = load_module(description, context.device).requires_grad_(False)
    # The first kernels of the adapter are drawn from the seed, whatever was drawn before.
    torch.manual_seed(context.seed)
    peft_config = adapter_config(config, description, parent.name)
    if isinstance(peft_config, PeftLoraConfig):
        peft_config.fan_in_fan_out = any(isinstance(part, Conv1D) for part in base.modules())
    model = add_new_adapter(base, peft_config)
    training = _frozen_statistics(config.training, model)
    task = _task(config, description, (model, teacher), context)
    result = fit(model, task, training, RunSettings.of(context), Callbacks.of(context))
    tensors = adapter_tensors(model)
    write_adapter(tensors, peft_config, out)
    write_base(_base_of(parent, context), out)
    parameters = sum(tensor.numel() for tensor in tensors.values())
    modules = len({re.split(r"\.(?:lora_|ia3_)", name)[0] for name in tensors})
    size = (out / ADAPTER_WEIGHTS).stat().st_size
    counts = {"parameters": parameters, "modules": modules, "size_bytes": size}
    return PassOutput(result.summary() | {"adapter": counts})


def adapter_config(config: LoraConfig, architecture: Architecture, base: str) -> PeftConfig:
    """Return PEFT's config.

    Args:
        config: of the pass.
        architecture: of the base.
        base: name of the base, for users of PEFT.

    Raises:
        RequirementError: PEFT has no default targets for the model.
    """
    targets = resolve_targets(config, model_type_of(architecture))
    if targets is None:
        raise RequirementError(
            "`target_modules`: PEFT has no default for this model",
            remedy="name the modules to adapt",
        )
    generation = architecture.capability(CachedGeneration)
    is_causal = generation is not None and not generation.encoder_inputs
    common: dict[str, Any] = {
        "base_model_name_or_path": base,
        "target_modules": _as_peft(targets),
        "task_type": _CAUSAL_LM if is_causal else None,
    }
    if config.peft_type == "IA3":
        return IA3Config(feedforward_modules=list(targets.feedforward), **common)
    alpha = int(config.lora_alpha) if config.lora_alpha % 1 == 0 else config.lora_alpha
    return PeftLoraConfig(
        r=config.r,
        lora_alpha=alpha,  # type: ignore[arg-type]  # PEFT divides it as a number
        lora_dropout=config.lora_dropout,
        use_rslora=config.use_rslora,
        **common,
    )


def _as_peft(targets: Targets) -> list[str] | str:
    return targets.names if isinstance(targets.names, str) else list(targets.names)


def add_new_adapter(base: nn.Module, config: PeftConfig) -> nn.Module:
    """Put an adapter that changes nothing yet into a module; its parameters are float32.

    Raises:
        RequirementError: PEFT refuses the target modules.
    """
    from peft import inject_adapter_in_model

    with library_errors("`target_modules`", RequirementError, "name linear layers of the model"):
        model: nn.Module = inject_adapter_in_model(config, base)
    for weight in model.parameters():
        if weight.requires_grad:
            weight.data = weight.data.float()
    return model


def write_adapter(tensors: dict[str, Tensor], config: PeftConfig, folder: Path) -> None:
    """Write config and tensors as PEFT does, with sorted keys: equal adapters have equal bytes.

    Raises:
        StorageError: the disk is full, or the folder cannot be written.
    """
    from safetensors.torch import save_file

    tree = {name: _plain(value) for name, value in config.to_dict().items()}
    tree["inference_mode"] = True
    with writing(folder):
        save_file(tensors, folder / ADAPTER_WEIGHTS, metadata={"format": "pt"})
        (folder / ADAPTER_CONFIG).write_text(json.dumps(tree, indent=2, sort_keys=True) + "\n")


def _plain(value: Any) -> Any:
    if isinstance(value, set | frozenset):
        return sorted(value)
    return getattr(value, "value", value)  # enums


def _frozen_statistics(training: TrainingConfig, model: nn.Module) -> TrainingConfig:
    """Return a training that leaves the statistics of batch normalizations as they are."""
    norms = torch.nn.modules.batchnorm._BatchNorm
    if not any(isinstance(module, norms) for module in model.modules()):
        return training
    return training.model_copy(update={"batch_norm": "freeze"})


@dataclass(frozen=True, slots=True)
class _Distillation:
    """Loss with soft labels of a teacher."""

    config: LoraConfig
    heads: TrainingHeads
    student: nn.Module
    teacher: nn.Module
    input_names: tuple[str, ...]
    shared: tuple[str, ...]
    """Heads that get soft labels."""

    def __call__(
        self, outputs: dict[str, Tensor], batch: dict[str, Tensor], fraction: float
    ) -> dict[str, Tensor]:
        """Return the terms of the loss, a scalar each."""
        del fraction  # the temperature is constant
        with torch.no_grad():
            target = self.teacher(**{name: batch[name] for name in self.input_names})
            logits = self.heads.logits(self.teacher, target)
        return distillation_losses(
            self.heads.logits(self.student, outputs),
            batch,
            {name: logits[name] for name in self.shared},
            weight=self.config.soft_weight,
            temperature=self.config.temperature,
        )


def _task(
    config: LoraConfig,
    architecture: Architecture,
    models: tuple[nn.Module, Artifact | None],
    context: PassContext,
) -> Task:
    """Return data and loss; the models are the adapted one, and the artifact of the teacher."""
    model, teacher = models
    heads = architecture.require(TrainingHeads)
    dataset = context.data(config.train)
    validation = context.data(config.validation) if config.validation else None
    if teacher is None:
        return Task(
            dataset,
            lambda outputs, batch, _: hard_cross_entropy(heads.logits(model, outputs), batch),
            validation,
            keeps_frozen=True,
        )
    module = load_module(teacher.model, context.device).requires_grad_(False)
    student, target = probe_outputs(model, module, dataset)
    shared = shared_heads(heads.logits(model, student), heads.logits(module, target), context.note)
    loss = _Distillation(config, heads, model, module, dataset.input_names, shared)
    return Task(dataset, loss, validation, keeps_frozen=True)


def _base_of(parent: Artifact, context: PassContext) -> AdapterBase:
    """Return the reference to the base; one of another store is named by its path."""
    store = context.work.absolute().parents[2]
    is_here = parent.path.absolute().parent == store
    name = parent.name if is_here else str(parent.path.absolute())
    return AdapterBase(artifact=parent.id, digest=model_digest(parent.model), name=name)
