"""Training loop of ``train``, ``distill``, ``prune``, ``qat``, ``lora`` and ``align``.

The same model, task, config and seed give the same weights bit for bit, on one machine with one
number of threads, however often the run is killed and resumed in between. The only files are the
checkpoints.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from compressor.data.contract import Batch
from compressor.errors import NumericalError, RequirementError
from compressor.runtimes.memory import reused_memory
from passes.common.accuracy import check_labels, evaluate_accuracy
from passes.common.checkpoint import UnusableCheckpointError, load_checkpoint, save_checkpoint
from passes.common.config import TrainingConfig
from passes.common.device import deterministic_algorithms, device_of, tensors_from_batch
from passes.common.sampling import Sampler, step_seed
from passes.common.task import Callbacks, RunSettings, Task, TrainingResult

CHECKPOINT = "training.ckpt"


def fit(
    model: nn.Module,
    task: Task,
    config: TrainingConfig,
    settings: RunSettings,
    callbacks: Callbacks | None = None,
) -> TrainingResult:
    """Train a model in place, and leave it in eval mode.

    Args:
        model: Called with the inputs of the data set by keyword; returns a dict with ``logits``.
        task: Data and loss.
        config: Steps, batch size, learning rate and so on.
        settings: Seed, folder of the checkpoints, and the subset of the steps to take.
        callbacks: Called in the course of the training.

    Raises:
        NumericalError: A term of the loss, or the gradient, is not finite.
        RequirementError: ``batch_norm`` is set, and the model has no batch normalization.
    """
    return _Loop(model, task, config, settings, callbacks or Callbacks()).run()


def check_batch_norm(config: TrainingConfig, module: nn.Module) -> None:
    """Check that a module has batch normalizations if ``batch_norm`` is set.

    Raises:
        RequirementError: It has none.
    """
    if "batch_norm" in config.model_fields_set and not _batch_norms(module):
        raise RequirementError(
            "`training.batch_norm` has no effect: the model has no batch normalization to train",
            remedy="leave `batch_norm` out",
        )


def _batch_norms(module: nn.Module) -> list[nn.Module]:
    return [
        layer for layer in module.modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm)
    ]


@dataclass(slots=True)
class _State:
    """Progress of a run, apart from tensors; saved in checkpoints."""

    step: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)
    sums: dict[str, float] = field(default_factory=dict)
    """Sums of the terms of the loss since the last evaluation."""
    summed: int = 0
    """Number of steps in the sums."""
    best_step: int = 0
    best_accuracy: float = -1.0
    stale: int = 0
    """Evaluations since the best one."""


class _Loop:
    """One call of ``fit``."""

    def __init__(
        self,
        model: nn.Module,
        task: Task,
        config: TrainingConfig,
        settings: RunSettings,
        callbacks: Callbacks,
    ) -> None:
        self.model, self.task, self.config = model, task, config
        self.settings, self.callbacks = settings, callbacks
        self.stretch = range(config.steps) if settings.stretch is None else settings.stretch
        self.checkpoint = settings.checkpoint_dir / CHECKPOINT
        self.learners = nn.ModuleList([model] if task.extra is None else [model, task.extra])
        check_batch_norm(config, self.learners)
        if task.validation is not None and task.evaluate is evaluate_accuracy:
            check_labels(task.validation)
        self.frozen = _frozen_names(model) if task.keeps_frozen else frozenset()
        """Names of the parameters of the model that never change."""
        self.batch_norms = _batch_norms(self.learners)
        self.weights = [weight for weight in self.learners.parameters() if weight.requires_grad]
        self.optimizer = _build_optimizer(self.weights, config)
        self.averaged = _copy_to_average(model, self.frozen) if config.ema_decay else None
        self.best: dict[str, Tensor] | None = None
        self.sampler = Sampler(len(task.dataset), config.batch_size, settings.seed)
        self.sampler.skip(self.stretch.start)
        self.state = _State(step=self.stretch.start)

    def run(self) -> TrainingResult:
        """Take all steps of the stretch, from the checkpoint if there is one."""
        resumed_from = self._resume()
        state, config = self.state, self.config
        self._set_training_mode()
        with (
            deterministic_algorithms(device_of(self.model)),
            reused_memory(),
            ThreadPoolExecutor(1, "next-batch") as thread,
        ):
            pending: Future[Batch] | None = None
            while state.step < self.stretch.stop and not self._out_of_patience():
                batch = pending.result() if pending else self._next_batch()
                saved_sampler = self.sampler.state()
                last = state.step + 1 == self.stretch.stop
                evaluates = last or (
                    config.evaluate_every > 0 and (state.step + 1) % config.evaluate_every == 0
                )
                # An evaluation may change the sampling: the batch after it is drawn afterwards.
                pending = None if evaluates else thread.submit(self._next_batch)
                metrics = self._step(batch)
                if evaluates:
                    metrics |= self._evaluate()
                    self._set_training_mode()
                    saved_sampler = self.sampler.state()
                self.callbacks.progress(state.step, config.steps, metrics)
                if state.step % config.checkpoint_every == 0 and not last:
                    self._save(saved_sampler)
        return self._finish(resumed_from)

    def _set_training_mode(self) -> None:
        """Set training mode; frozen batch normalizations stay in eval mode."""
        self.learners.train()
        if self.config.batch_norm == "freeze":
            for module in self.batch_norms:
                module.eval()

    def _next_batch(self) -> Batch:
        indices, epoch = self.sampler.next()
        return self.task.dataset.batch(indices, epoch)

    def _step(self, batch: Batch) -> dict[str, float]:
        config, state = self.config, self.state
        torch.manual_seed(step_seed(self.settings.seed, state.step))
        rate = config.rate(state.step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        tensors = tensors_from_batch(batch, device_of(self.model))
        progress = state.step / config.steps
        self.callbacks.before_step(progress)
        outputs = self.model(**{name: tensors[name] for name in self.task.dataset.input_names})
        terms = self.task.objective(outputs, tensors, progress)
        loss = torch.stack(list(terms.values())).sum()
        values = {name: term.item() for name, term in terms.items()}
        _check_loss(values, state.step)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        norm = nn.utils.clip_grad_norm_(self.weights, config.clip_norm).item()
        _check_gradient(norm, loss.item(), state.step)
        self.optimizer.step()
        state.step += 1
        if self.averaged is not None:
            taken = state.step - self.stretch.start
            decay = min(config.ema_decay, (1 + taken) / (10 + taken))
            _update_average(self.averaged, self.model, decay, self.frozen)
        for name, value in values.items():
            state.sums[name] = state.sums.get(name, 0.0) + value
        state.summed += 1
        return {"loss": sum(values.values()), "learning_rate": rate}

    def _evaluate(self) -> dict[str, float]:
        """Add an entry to the history, and return the accuracy if there is a validation set."""
        state = self.state
        entry: dict[str, Any] = {"step": state.step}
        entry |= {name: total / state.summed for name, total in state.sums.items()}
        state.sums, state.summed = {}, 0
        state.history.append(entry)
        if self.task.validation is None:
            return {}
        module = self._evaluated_module()
        evaluation = self.task.evaluate(module, self.task.validation, self.config.batch_size)
        entry |= {"accuracy": evaluation.accuracy, "slices": evaluation.slices}
        if evaluation.accuracy > state.best_accuracy:
            state.best_step, state.best_accuracy = state.step, evaluation.accuracy
            state.stale = 0
            if self.config.patience is not None:
                self.best = {name: t.clone() for name, t in self._trained(module).items()}
        else:
            state.stale += 1
        weights = self.callbacks.on_evaluation(state.step, evaluation)
        if weights is not None:
            self.sampler.reweigh(weights)
        return {"accuracy": evaluation.accuracy}

    def _trained(self, module: nn.Module) -> dict[str, Tensor]:
        """Return the state of the model, or of its average, without frozen parameters."""
        return {name: t for name, t in module.state_dict().items() if name not in self.frozen}

    @property
    def _frozen_learners(self) -> frozenset[str]:
        """Names in ``learners``, of which the model is the first."""
        return frozenset(f"0.{name}" for name in self.frozen)

    def _evaluated_module(self) -> nn.Module:
        return self.model if self.averaged is None else self.averaged

    def _out_of_patience(self) -> bool:
        return self.config.patience is not None and self.state.stale >= self.config.patience

    def _finish(self, resumed_from: int | None) -> TrainingResult:
        state = self.state
        weights = self.best if self.best is not None else self._trained(self._evaluated_module())
        _load(self.model, {name: tensor.clone() for name, tensor in weights.items()}, self.frozen)
        self.model.eval()
        return TrainingResult(
            history=state.history,
            steps=state.step,
            kept_step=state.best_step if self.best is not None else state.step,
            stopped_early=state.step < self.stretch.stop,
            resumed_from=resumed_from,
        )

    def _identity(self) -> str:
        """Return a digest of the inputs that a run and its checkpoint must share."""
        shapes = [[name, list(weight.shape)] for name, weight in self.learners.named_parameters()]
        identity = [
            self.config.model_dump(mode="json"),
            self.settings.seed,
            len(self.task.dataset),
            shapes,
            [self.stretch.start, self.stretch.stop],
        ]
        return hashlib.sha256(json.dumps(identity).encode()).hexdigest()

    def _save(self, sampler: dict[str, Any]) -> None:
        frozen, state = self._frozen_learners, self.learners.state_dict()
        tensors = {
            "learners": {name: t for name, t in state.items() if name not in frozen},
            "optimizer": self.optimizer.state_dict(),
            "averaged": None if self.averaged is None else self._trained(self.averaged),
            "best": self.best,
        }
        plain = {name: getattr(self.state, name) for name in _State.__slots__}
        save_checkpoint(
            self.checkpoint, self._identity(), tensors | {"sampler": sampler, "plain": plain}
        )

    def _resume(self) -> int | None:
        """Load the checkpoint, and return its step; None without a usable one."""
        if not self.checkpoint.exists():
            return None
        try:
            saved = load_checkpoint(self.checkpoint, self._identity())
        except UnusableCheckpointError as error:
            self.callbacks.note(f"{error}: training starts from the first step")
            return None
        _load(self.learners, saved["learners"], self._frozen_learners)
        self.optimizer.load_state_dict(saved["optimizer"])
        if self.averaged is not None:
            _load(self.averaged, saved["averaged"], self.frozen)
        self.best = saved["best"]
        self.sampler.restore(saved["sampler"])
        self.state = _State(**saved["plain"])
        return self.state.step


def _frozen_names(module: nn.Module) -> frozenset[str]:
    """Return the names of the parameters that need no gradient."""
    weights = module.named_parameters(remove_duplicate=False)
    return frozenset(name for name, weight in weights if not weight.requires_grad)


def _copy_to_average(model: nn.Module, frozen: frozenset[str]) -> nn.Module:
    """Return a copy of a model that shares its frozen parameters."""
    weights = model.named_parameters(remove_duplicate=False)
    shared = {id(weight): weight for name, weight in weights if name in frozen}
    return copy.deepcopy(model, shared).requires_grad_(False)


def _load(module: nn.Module, state: Mapping[str, Tensor], frozen: frozenset[str]) -> None:
    """Load a state in which only frozen parameters may be missing."""
    missing, unexpected = module.load_state_dict(state, strict=False)
    assert not unexpected  # noqa: S101 - the state was saved by this loop
    assert {*missing} <= frozen  # noqa: S101


def _check_loss(terms: Mapping[str, float], step: int) -> None:
    if not np.isfinite(list(terms.values())).all():
        values = ", ".join(f"{name} {value:g}" for name, value in terms.items())
        raise NumericalError(
            f"the loss is not finite at step {step + 1}: {values}",
            remedy="lower `learning_rate` or `clip_norm`, or look for NaN in weights and data",
        )


def _check_gradient(norm: float, loss: float, step: int) -> None:
    if not np.isfinite(norm):
        raise NumericalError(
            f"the gradient is not finite at step {step + 1}, though the loss is {loss:g}",
            remedy="lower `learning_rate`",
        )


def _build_optimizer(weights: list[nn.Parameter], config: TrainingConfig) -> torch.optim.Optimizer:
    """Return AdamW without weight decay of vectors."""
    groups = [
        {
            "params": [weight for weight in weights if weight.ndim > 1],
            "weight_decay": config.weight_decay,
        },
        {"params": [weight for weight in weights if weight.ndim <= 1], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    return torch.optim.AdamW(groups, lr=config.learning_rate, fused=True)


@torch.no_grad()
def _update_average(
    averaged: nn.Module, model: nn.Module, decay: float, frozen: frozenset[str]
) -> None:
    """Set averaged ← decay · averaged + (1 − decay) · model; integer buffers are copied."""
    old_state = averaged.state_dict()
    pairs = [
        (old_state[name], tensor)
        for name, tensor in model.state_dict().items()
        if name not in frozen
    ]
    floats = [(old, new) for old, new in pairs if old.dtype.is_floating_point]
    torch._foreach_lerp_([old for old, _ in floats], [new for _, new in floats], 1.0 - decay)
    for old, new in pairs:
        if not old.dtype.is_floating_point:
            old.copy_(new)
