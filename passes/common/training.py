"""The one training loop: train, distill and every later pass that learns call ``fit``.

Tensors and modules in, a result out; the only files are the checkpoints in the folder it is given. On one machine with one
number of threads, the same arguments give the same weights, bit for bit, however often the run is killed between.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from compressor.data.contract import Batch, Dataset
from compressor.errors import NumericalError
from passes.common.accuracy import Evaluation, device_of, evaluate_accuracy, tensors_from_batch
from passes.common.checkpoint import UnusableCheckpointError, load_checkpoint, save_checkpoint
from passes.common.config import TrainingConfig
from passes.common.sampling import Sampler, Weights

Objective = Callable[[dict[str, Tensor], dict[str, Tensor], float], dict[str, Tensor]]
"""(outputs, batch, progress in [0, 1]) to the named, weighted terms of the loss, each a scalar."""
OnEvaluation = Callable[[int, Evaluation], Weights | None]
"""(step, validation result) to new sampling weights [len(dataset)], or None to leave them."""
Progress = Callable[[int, int, Mapping[str, float]], None]
"""(steps done, steps in all, figures)."""

CHECKPOINT = "training.ckpt"


@dataclass(frozen=True, slots=True)
class TrainingResult:
    """What happened; the weights are in the module that was given."""

    history: list[dict[str, Any]]
    """One entry per evaluation: step, mean loss terms since the last, accuracy, slices."""
    steps: int
    """Steps taken, with those before the stretch."""
    kept_step: int
    """The step whose weights were kept: the last, or with ``patience`` the best."""
    stopped_early: bool
    resumed_from: int | None
    """The step of the checkpoint that this call went on from."""


@dataclass(slots=True)
class _State:
    """What a run carries from step to step, apart from tensors."""

    step: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)
    sums: dict[str, float] = field(default_factory=dict)
    summed: int = 0
    best_step: int = 0
    best_accuracy: float = -1.0
    stale: int = 0


def fit(
    model: nn.Module,
    dataset: Dataset,
    config: TrainingConfig,
    *,
    seed: int,
    objective: Objective,
    checkpoint_dir: Path,
    extra: nn.Module | None = None,
    validation: Dataset | None = None,
    on_evaluation: OnEvaluation | None = None,
    progress: Progress = lambda *_: None,
    note: Callable[[str], None] = lambda _: None,
    stretch: range | None = None,
    before_step: Callable[[float], None] = lambda _: None,
) -> TrainingResult:
    """Train ``model`` in place.

    Args:
        model: called with the data set's inputs by keyword; returns a dict with ``logits``.
        dataset: ``batch(indices, epoch)`` must be a pure function of its arguments.
        config: the recipe.
        seed: of the order of samples, and of dropout.
        objective: the loss.
        checkpoint_dir: checkpoints are written here, and gone on from.
        extra: modules that learn with the model but are no part of it, such as projections of features.
        validation: looked at every ``evaluate_every`` steps, and at the end.
        on_evaluation: called after each look, may change the sampling.
        progress: called after every step.
        note: told in one line why a checkpoint could not be used.
        stretch: take only these of the ``config.steps`` steps, with the batches and the learning rates that are theirs: a
            training in several calls, between which the caller changes the model. The optimizer and the average start anew.
        before_step: called before each step with the part of all steps that is done, in [0, 1).

    Raises:
        NumericalError: a term of the loss, or the gradient, is not finite.
    """
    stretch = range(config.steps) if stretch is None else stretch
    run = _Run(
        model,
        dataset,
        config,
        seed,
        objective,
        checkpoint_dir,
        extra,
        validation,
        on_evaluation,
        stretch,
        before_step,
    )
    return run.go(progress, note)


class _Run:
    """One call of ``fit``."""

    def __init__(
        self,
        model: nn.Module,
        dataset: Dataset,
        config: TrainingConfig,
        seed: int,
        objective: Objective,
        checkpoint_dir: Path,
        extra: nn.Module | None,
        validation: Dataset | None,
        on_evaluation: OnEvaluation | None,
        stretch: range,
        before_step: Callable[[float], None],
    ) -> None:
        self.model, self.dataset, self.config, self.seed = model, dataset, config, seed
        self.objective, self.validation, self.on_evaluation = objective, validation, on_evaluation
        self.before_step = before_step
        self.learners = nn.ModuleList([model] if extra is None else [model, extra])
        self.checkpoint = checkpoint_dir / CHECKPOINT
        self.weights = [weight for weight in self.learners.parameters() if weight.requires_grad]
        self.optimizer = _optimizer(self.weights, config)
        self.averaged = copy.deepcopy(model).requires_grad_(False) if config.average else None
        self.best: dict[str, Tensor] | None = None
        self.stretch = stretch
        self.sampler = Sampler(len(dataset), config.batch_size, seed)
        self.sampler.skip(stretch.start)
        self.state = _State(step=stretch.start)

    def go(self, progress: Progress, note: Callable[[str], None]) -> TrainingResult:
        """All steps, from the checkpoint where there is one."""
        resumed_from = self._resume(note)
        state, config = self.state, self.config
        self._learning()
        with _deterministic(device_of(self.model)), ThreadPoolExecutor(1, "next-batch") as thread:
            pending: Future[Batch] | None = None
            while state.step < self.stretch.stop and not self._stopped():
                batch = pending.result() if pending else self._compose()
                saved_sampler = self.sampler.state()
                last = state.step + 1 == self.stretch.stop
                looks = last or (
                    config.evaluate_every > 0 and (state.step + 1) % config.evaluate_every == 0
                )
                # A look may change the sampling, so the batch after it is composed when it is over.
                pending = None if looks else thread.submit(self._compose)
                figures = self._step(batch)
                if looks:
                    figures |= self._look()
                    self._learning()
                    saved_sampler = self.sampler.state()
                progress(state.step, config.steps, figures)
                if state.step % config.checkpoint_every == 0 and not last:
                    self._save(saved_sampler)
        return self._finish(resumed_from)

    def _learning(self) -> None:
        """Training mode; batch normalizations that are frozen go on as in use."""
        self.learners.train()
        if self.config.batch_norm == "freeze":
            for module in self.learners.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()

    def _compose(self) -> Batch:
        indices, epoch = self.sampler.next()
        return self.dataset.batch(indices, epoch)

    def _step(self, batch: Batch) -> dict[str, float]:
        config, state = self.config, self.state
        device = device_of(self.model)
        torch.manual_seed(_step_seed(self.seed, state.step))
        rate = config.rate(state.step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        tensors = tensors_from_batch(batch, device)
        self.before_step(state.step / config.steps)
        outputs = self.model(**{name: tensors[name] for name in self.dataset.input_names})
        terms = self.objective(outputs, tensors, state.step / config.steps)
        loss = torch.stack(list(terms.values())).sum()
        figures = {name: term.item() for name, term in terms.items()}
        if not np.isfinite(list(figures.values())).all():
            shown = ", ".join(f"{name} {value:g}" for name, value in figures.items())
            raise NumericalError(
                f"the loss is not finite at step {state.step + 1}: {shown}",
                remedy="lower learning_rate or clip_norm, or look for NaN in the weights and the data",
            )
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        norm = nn.utils.clip_grad_norm_(self.weights, config.clip_norm).item()
        if not np.isfinite(norm):
            raise NumericalError(
                f"the gradient is not finite at step {state.step + 1}, though the loss is {loss.item():g}",
                remedy="lower learning_rate",
            )
        self.optimizer.step()
        state.step += 1
        if self.averaged is not None:
            taken = state.step - self.stretch.start
            _average(self.averaged, self.model, min(config.average, (1 + taken) / (10 + taken)))
        for name, value in figures.items():
            state.sums[name] = state.sums.get(name, 0.0) + value
        state.summed += 1
        return {"loss": sum(figures.values()), "learning_rate": rate}

    def _look(self) -> dict[str, float]:
        """Evaluate, remember, and let the caller change the sampling."""
        state = self.state
        entry: dict[str, Any] = {"step": state.step}
        entry |= {name: total / state.summed for name, total in state.sums.items()}
        state.sums, state.summed = {}, 0
        state.history.append(entry)
        if self.validation is None:
            return {}
        kept = self._kept()
        result = evaluate_accuracy(kept, self.validation, self.config.batch_size)
        entry |= {"accuracy": result.accuracy, "slices": result.slices}
        if result.accuracy > state.best_accuracy:
            state.best_step, state.best_accuracy, state.stale = state.step, result.accuracy, 0
            if self.config.patience is not None:
                self.best = {name: tensor.clone() for name, tensor in kept.state_dict().items()}
        else:
            state.stale += 1
        if self.on_evaluation is not None:
            weights = self.on_evaluation(state.step, result)
            if weights is not None:
                self.sampler.reweigh(weights)
        return {"accuracy": result.accuracy}

    def _kept(self) -> nn.Module:
        return self.model if self.averaged is None else self.averaged

    def _stopped(self) -> bool:
        return self.config.patience is not None and self.state.stale >= self.config.patience

    def _finish(self, resumed_from: int | None) -> TrainingResult:
        state = self.state
        weights = self.best if self.best is not None else self._kept().state_dict()
        self.model.load_state_dict({name: tensor.clone() for name, tensor in weights.items()})
        self.model.eval()
        return TrainingResult(
            history=state.history,
            steps=state.step,
            kept_step=state.best_step if self.best is not None else state.step,
            stopped_early=state.step < self.stretch.stop,
            resumed_from=resumed_from,
        )

    def _identity(self) -> str:
        """What must be the same for a checkpoint to be this run's."""
        shapes = [[name, list(weight.shape)] for name, weight in self.learners.named_parameters()]
        stretch = [self.stretch.start, self.stretch.stop]
        facts = [self.config.model_dump(mode="json"), self.seed, len(self.dataset), shapes, stretch]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()

    def _save(self, sampler: dict[str, Any]) -> None:
        state = self.state
        tensors = {
            "learners": self.learners.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "averaged": None if self.averaged is None else self.averaged.state_dict(),
            "best": self.best,
        }
        plain = {name: getattr(state, name) for name in _State.__slots__}
        save_checkpoint(
            self.checkpoint, self._identity(), tensors | {"sampler": sampler, "plain": plain}
        )

    def _resume(self, note: Callable[[str], None]) -> int | None:
        if not self.checkpoint.exists():
            return None
        try:
            saved = load_checkpoint(self.checkpoint, self._identity())
        except UnusableCheckpointError as error:
            note(f"{error}: training starts anew")
            return None
        self.learners.load_state_dict(saved["learners"])
        self.optimizer.load_state_dict(saved["optimizer"])
        if self.averaged is not None:
            self.averaged.load_state_dict(saved["averaged"])
        self.best = saved["best"]
        self.sampler.restore(saved["sampler"])
        self.state = _State(**saved["plain"])
        return self.state.step


def _optimizer(weights: list[nn.Parameter], config: TrainingConfig) -> torch.optim.Optimizer:
    """AdamW; vectors are not decayed."""
    groups = [
        {
            "params": [weight for weight in weights if weight.ndim > 1],
            "weight_decay": config.weight_decay,
        },
        {"params": [weight for weight in weights if weight.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]], lr=config.learning_rate, fused=True
    )


@torch.no_grad()
def _average(averaged: nn.Module, model: nn.Module, decay: float) -> None:
    """Set averaged ← decay · averaged + (1 − decay) · model; counters are copied."""
    pairs = list(zip(averaged.state_dict().values(), model.state_dict().values(), strict=True))
    moving = [(old, new) for old, new in pairs if old.dtype.is_floating_point]
    torch._foreach_lerp_([old for old, _ in moving], [new for _, new in moving], 1.0 - decay)
    for old, new in pairs:
        if not old.dtype.is_floating_point:
            old.copy_(new)


def _step_seed(seed: int, step: int) -> int:
    """A seed per step, so that dropout needs no generator state in a checkpoint."""
    return int(np.random.SeedSequence([seed, step]).generate_state(1, np.uint64)[0] >> np.uint64(1))


@contextmanager
def _deterministic(device: torch.device) -> Iterator[None]:
    """Refuse operations that may differ from run to run, on the CPU; a GPU's need a setting from outside."""
    before = torch.are_deterministic_algorithms_enabled()
    memory: Any = torch.utils.deterministic
    filled = memory.fill_uninitialized_memory
    torch.use_deterministic_algorithms(before or device.type == "cpu")
    # Filling fresh memory guards against code that reads it unwritten; it costs 4 % of a small model's step.
    memory.fill_uninitialized_memory = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
        memory.fill_uninitialized_memory = filled
