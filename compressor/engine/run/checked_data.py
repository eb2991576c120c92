"""The data sets of a run, checked by their first and last samples, and batch by batch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from compressor.artifacts.artifact import Artifact
from compressor.data.contract import Batch, Dataset
from compressor.engine import events
from compressor.engine.data_checks import Finding, sample_problems
from compressor.engine.plan.plan import DataUse, Plan, PlannedStep
from compressor.errors import ConfigError, DataError, Problem
from compressor.models.capabilities.signature import InputSpec
from compressor.runtimes.formats import StoredModel
from compressor.runtimes.session import input_problems, sample_specs


class RunData:
    """The data sets of one plan; each is opened once."""

    def __init__(self, plan: Plan, emit: Callable[[events.Event], None]) -> None:
        self.plan, self.emit = plan, emit
        self._datasets: dict[str, Dataset] = {}
        self._notes: set[str] = set()

    def open(self, step: PlannedStep, name: str) -> Dataset:
        """Return a data set; the progress of a long build is reported as that of ``step``.

        Raises:
            DataError: the data set cannot be read.
        """
        if name not in self._datasets:
            data_set = self.plan.pipeline.data[name]

            def progress(what: str, done: int, total: int) -> None:
                self.emit(events.StepProgress(step.name, what, done, total))

            def note(text: str) -> None:
                if text not in self._notes:
                    self._notes.add(text)
                    self.emit(events.StepNote(step.name, text))

            context = replace(self.plan.sources, progress=progress, note=note)
            self._datasets[name] = data_set.source.load(data_set.config, context)
        return self._datasets[name]

    def check(self, uses: Sequence[tuple[PlannedStep, DataUse]]) -> None:
        """Check the data sets of steps by their first and last samples.

        Raises:
            ConfigError: data sets cannot be read, or do not fit; the problems of all are listed.
        """
        checked: set[tuple[Any, ...]] = set()
        problems: list[Problem] = []
        for step, use in uses:
            key = (use.location, use.need, use.signature())
            if key not in checked:
                checked.add(key)
                problems += self._problems(step, use)
        if problems:
            found = dict.fromkeys(problems)
            raise ConfigError(sorted(found, key=lambda problem: problem.line or 0))

    def _problems(self, step: PlannedStep, use: DataUse) -> list[Problem]:
        document, location = self.plan.pipeline.document, use.location
        try:
            dataset = self.open(step, use.need.data)
            findings: list[Finding] = list(sample_problems(use.need, dataset, use.signature()))
        except DataError as error:
            location = ("data", use.need.data)
            return [document.problem(location, error.what, remedy=error.remedy)]
        return [document.problem(location, what, remedy=remedy) for what, remedy in findings]

    def keep(self, names: Iterable[str]) -> None:
        """Close all data sets but the named ones."""
        names = set(names)
        self._datasets = {name: data for name, data in self._datasets.items() if name in names}

    def checked(self, step: PlannedStep, name: str, uses: Iterable[DataUse]) -> Dataset:
        """Return a data set whose batches are compared with the models that run on it."""
        signatures = [use.signature() for use in uses if use.need.data == name]
        specs = {spec: None for signature in signatures if signature for spec in signature.inputs}
        dataset = self.open(step, name)
        return _CheckedDataset(name, dataset, tuple(specs)) if specs else dataset


def uses_of_pass(step: PlannedStep, inputs: Mapping[str, Artifact]) -> list[DataUse]:
    """Return the data sets of a step's pass, with the facts of its input artifacts as they are."""
    uses = []
    for use in step.data:
        if use.need.role in inputs and not use.measures:
            model = StoredModel.of(inputs[use.need.role])
            uses.append(replace(use, model=model.format.facts(model.path)))
        elif not use.measures:
            uses.append(use)
    return uses


class _CheckedDataset(Dataset):
    """A data set whose batches are compared with the inputs of models."""

    def __init__(self, name: str, dataset: Dataset, specs: Sequence[InputSpec]) -> None:
        self._name, self._dataset, self._specs = name, dataset, specs
        self.input_names = dataset.input_names
        self.label_name = dataset.label_name

    def __len__(self) -> int:
        return len(self._dataset)

    def batch(self, indices: np.ndarray[Any, Any], epoch: int = 0) -> Batch:
        """Return the batch of the data set.

        Raises:
            DataError: an input is missing, misshapen or out of range.
        """
        batch = self._dataset.batch(indices, epoch)
        # One by one, since consecutive samples may share an input: see ``Batch``.
        specs = sample_specs(batch, self._specs)
        problems = [line for spec in specs for line in input_problems(batch, (spec,))]
        if problems:
            raise DataError(
                f"data set {self._name!r}, samples {indices.min()} to {indices.max()}: "
                f"{'; '.join(dict.fromkeys(problems))}",
                remedy=f"make `data.{self._name}` with the tokenizer and the sizes of this model, "
                "or name another data set",
            )
        return batch

    def slices(self) -> Mapping[str, np.ndarray[Any, Any]]:
        """Return the slices of the data set."""
        return self._dataset.slices()

    def strata(self) -> Mapping[str, np.ndarray[Any, Any]]:
        """Return the strata of the data set."""
        return self._dataset.strata()

    def class_names(self) -> tuple[str, ...] | None:
        """Return the names of the classes of the data set."""
        return self._dataset.class_names()
