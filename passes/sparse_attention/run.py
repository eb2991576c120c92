"""Run of the ``sparse-attention`` pass: measure, assign, verify, write."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from calibration.samples import spread_indices
from compressor.artifacts.artifact import Artifact
from compressor.artifacts.files import copy_file
from compressor.data.contract import Dataset
from compressor.engine.contract import PassContext, PassOutput
from compressor.errors import DataError, GateError
from compressor.models.attention_patterns.record import (
    AttentionPattern,
    write_attention_pattern,
)
from compressor.models.capabilities.attention_heads import AttentionHeads
from compressor.models.checkpoint.companions import model_files
from compressor.models.checkpoint.description import read_description
from compressor.models.checkpoint.loading import load_module
from passes.common.checkpoint import UnusableCheckpointError, load_checkpoint, save_checkpoint
from passes.common.device import prepare_torch
from passes.sparse_attention.assignment import (
    Assignments,
    layer_options,
    pattern_of,
    random_pattern,
)
from passes.sparse_attention.config import SparseAttentionConfig
from passes.sparse_attention.losses import HeadMeasurement, Sums, measure_texts
from passes.sparse_attention.planned import TOKENS, most_saved_rows
from passes.sparse_attention.report import Report
from passes.sparse_attention.selections import (
    compared_name,
    use_compared,
    use_full_attention,
    use_pattern,
)
from passes.sparse_attention.verification import (
    Measured,
    Verification,
    mean_of,
    skipped_tokens,
    with_repetition,
)

_STATE = "sparse_attention.pt"


def sparse_attention(
    config: SparseAttentionConfig, parent: Artifact, out: Path, context: PassContext
) -> PassOutput:
    """Find the pattern, verify it, and write the model with it.

    Raises:
        DataError: a text is shorter than ``context_length``.
        GateError: the pattern does not pass the gates.
        NumericalError: an activation is not finite.
    """
    search = _Search(config, parent, context)
    report = search.run()
    for file in model_files(parent.model):
        target = out / file.relative_to(parent.model)
        target.parent.mkdir(exist_ok=True)
        copy_file(file, target)
    write_attention_pattern(report.pattern, out)
    return PassOutput(report.summary())


class _Search:
    """State of a run, of which ``context.work`` holds what has been measured."""

    def __init__(
        self, config: SparseAttentionConfig, parent: Artifact, context: PassContext
    ) -> None:
        self.config, self.context = config, context
        device = prepare_torch(context)
        description = read_description(parent.model)
        self.heads = description.require(AttentionHeads)
        self.module: Any = load_module(description, context.device).requires_grad_(False)
        self._device = device
        self._state = self._restore()
        self._total = self.heads.cached_rows(config.context_length)

    def run(self) -> Report:
        losses_LWG = self._measure_heads()
        verification = self._open_verification()
        assignments = self._assignments(losses_LWG)
        pattern, measured = self._choose(verification, assignments)
        report = Report(self.config, self.heads, pattern, measured, verification.ranges)
        report.losses_LWG = losses_LWG
        control = random_pattern(
            pattern, self.heads.full_layers, self.heads.key_heads, self.context.seed
        )
        cost = self._cost(verification, control, "random heads")
        report.add("as many heads at random", cost, control)
        for compared in self.config.compare:
            name = compared_name(compared)
            use = partial(use_compared, self.module, self.heads, compared, self.config)
            report.add(name, self._measured(verification, name, name, use), None)
        return report

    def _measure_heads(self) -> np.ndarray[Any, Any]:
        """Return the relative loss of each head under each window, [L, W, G]."""
        calibration, config = self.config.calibration, self.config
        dataset = self.context.data(calibration.data)
        indices = spread_indices(len(dataset), calibration.num_samples, calibration.seed)
        measurement = HeadMeasurement(self.module, self.heads, config.sinks, config.windows)
        done = int(self._state.get("texts", 0))
        if done:
            measurement.sums = Sums(self._state["errors"], self._state["streams"])
        texts = (self._repeating(dataset, indices[n : n + 1]) for n in range(done, len(indices)))
        for number, sums in enumerate(measure_texts(measurement, self.module, texts), done + 1):
            self._save(texts=number, errors=sums.errors_PLWG, streams=sums.streams_PL)
            self.context.progress("calibration", number, len(indices), {})
        losses: np.ndarray[Any, Any] = measurement.sums.relative().cpu().numpy()
        return losses

    def _repeating(
        self, dataset: Dataset, index: np.ndarray[Any, Any]
    ) -> tuple[dict[str, Tensor], int]:
        """Return the inputs of a sample, and the scored tokens of the passage that its end repeats.

        A sample with images repeats nothing.
        """
        inputs = self._inputs(dataset, index)
        if [*inputs] != [TOKENS]:
            return inputs, 0
        copied = self.config.verification.copied_tokens
        repeating = with_repetition(inputs[TOKENS][0], copied)
        return {TOKENS: repeating[None]}, copied - skipped_tokens(copied)

    def _inputs(self, dataset: Dataset, index: np.ndarray[Any, Any]) -> dict[str, Tensor]:
        """Return the inputs of a sample; text alone is cut to ``context_length``."""
        length, batch = self.config.context_length, dataset.batch(index)
        names = [name for name in dataset.input_names if name in batch]
        tokens = batch[TOKENS].shape[1]
        if tokens < length:
            raise DataError(
                f"a text has {tokens} tokens, and `context_length` is {length}",
                remedy="use longer texts, or a smaller `context_length`",
            )
        inputs = {name: torch.from_numpy(np.ascontiguousarray(batch[name])) for name in names}
        if names == [TOKENS]:
            inputs[TOKENS] = inputs[TOKENS][:, :length]
        return {name: value.to(self._device) for name, value in inputs.items()}

    def _open_verification(self) -> Verification:
        settings = self.config.verification
        dataset = self.context.data(settings.data)
        indices = spread_indices(len(dataset), settings.num_samples, self.config.calibration.seed)
        texts = [self._inputs(dataset, indices[n : n + 1]) for n in range(len(indices))]
        first = self.config.sinks + self.config.windows[0]
        verification = Verification(
            self.module, [text[TOKENS][0] for text in texts], settings.copied_tokens, first
        )
        for number in range(len(texts)):
            key = f"reference.{number}"
            if key not in self._state:
                use_full_attention(self.module, self.heads)
                self._save(**{key: verification.hidden_states(number).cpu()})
                self.context.progress("full attention", number + 1, len(texts), {})
            verification.set_reference(number, self._state[key].to(self._device))
        return verification

    def _assignments(self, losses_LWG: np.ndarray[Any, Any]) -> Assignments:
        config = self.config
        layers = []
        for number, losses_WG in enumerate(losses_LWG):
            options = layer_options(losses_WG, config.windows, config.sinks, config.context_length)
            layers.append(options if number in self.heads.full_layers else options[:1])
        return Assignments(layers)

    def _choose(
        self, verification: Verification, assignments: Assignments
    ) -> tuple[AttentionPattern, Measured]:
        if (share := self.config.budget.kv_memory) is not None:
            saved = math.ceil(self._total * (1 - share))
            most = most_saved_rows(self.config, self.heads)
            pattern = pattern_of(assignments.best(min(saved, most)))
            measured = self._cost(verification, pattern)
            if problem := self._gate_problem(measured):
                raise GateError(
                    f"sparse-attention: with `budget.kv_memory: {share:g}`, {problem}",
                    remedy="raise `budget.kv_memory`, add larger `windows`, or set `budget.kl`, "
                    "with which as much is kept as the gates need",
                )
            return pattern, measured
        return self._most_within_gates(verification, assignments)

    def _most_within_gates(
        self, verification: Verification, assignments: Assignments
    ) -> tuple[AttentionPattern, Measured]:
        """Return the pattern that saves most of those that pass the gates, by bisection.

        Patterns are tried in steps of one head; a step of more heads is taken to cost more.
        """
        most = most_saved_rows(self.config, self.heads)
        steps = self.heads.key_heads * len(self.heads.full_layers)
        best: tuple[AttentionPattern, Measured] | None = None
        problem, low, high = "", 0, steps + 1
        while high - low > 1:
            middle = (low + high) // 2
            pattern = pattern_of(assignments.best(most * middle // steps))
            measured = self._cost(verification, pattern)
            if failed := self._gate_problem(measured):
                problem, high = failed, middle
            else:
                best, low = (pattern, measured), middle
            metrics = {"kl": measured.kl, "copy_loss": measured.copy_loss}
            self.context.progress("heads", low, steps, metrics)
        if best is None:
            raise GateError(
                f"sparse-attention: with one local head, {problem}",
                remedy="raise `budget.kl`, or add larger `windows`",
            )
        return best

    def _gate_problem(self, measured: Measured) -> str:
        problems = []
        if measured.kl > self.config.kl_limit:
            problems.append(f"the KL divergence is {measured.kl:.4f} > {self.config.kl_limit:g}")
        if measured.copy_loss > self.config.max_copy_loss:
            problems.append(
                f"the copy loss is {measured.copy_loss:.3f} > {self.config.max_copy_loss:g}"
            )
        return " and ".join(problems)

    def _cost(
        self, verification: Verification, pattern: AttentionPattern, label: str = "pattern"
    ) -> Measured:
        use = partial(use_pattern, self.module, self.heads, pattern)
        return self._measured(verification, pattern.model_dump_json(), label, use)

    def _measured(
        self, verification: Verification, key: str, label: str, use: Callable[[], object]
    ) -> Measured:
        """Return what an attention costs; no text is measured twice, or after a resume."""
        known = json.loads(self._state.get("measured", "{}"))
        texts = known.setdefault(key, [])
        use()
        for number in range(len(texts), verification.texts):
            texts.append(asdict(verification.measure(number)))
            self._save(measured=json.dumps(known))
            self.context.progress(label, number + 1, verification.texts, {})
        use_full_attention(self.module, self.heads)
        return mean_of(
            [Measured(**{**text, "kl_by_range": tuple(text["kl_by_range"])}) for text in texts]
        )

    def _restore(self) -> dict[str, Any]:
        file = self.context.work / _STATE
        if not file.is_file():
            return {}
        try:
            return load_checkpoint(file, self.context.artifact_id)
        except UnusableCheckpointError as error:
            self.context.note(f"starting again: {error}")
            return {}

    def _save(self, **values: Any) -> None:
        self._state |= values
        save_checkpoint(self.context.work / _STATE, self.context.artifact_id, self._state)
