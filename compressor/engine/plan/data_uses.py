"""The data sets that the steps of a pipeline run models on, and what does not fit as planned."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from compressor.data.contract import DataFacts, SourceContext
from compressor.engine.contract import OUTPUT, Estimate
from compressor.engine.data_checks import (
    accuracy_problems,
    evaluation_needs,
    generation_problems,
    planned_problems,
    timed_generation_problems,
)
from compressor.engine.plan.pipeline import Pipeline, Step, data_set_problems
from compressor.engine.plan.plan import DataUse
from compressor.errors import CompressError, Problem
from compressor.evaluation.records import EvaluateConfig, GenerationConfig
from compressor.models.facts import ModelFacts


def pass_uses(
    step: Step, inputs: Mapping[str, ModelFacts], estimate: Estimate
) -> tuple[DataUse, ...]:
    """Return the data sets of a step's pass.

    Args:
        step: the step.
        inputs: facts of its input artifacts by role.
        estimate: the estimate of the step, with the facts of its output.
    """
    models = {**inputs, OUTPUT: estimate.model}
    return tuple(
        DataUse(need, ("passes", step.index, *need.field.split(".")), models[need.role])
        for need in step.pass_.data_needs(step.config)
    )


def measured_uses(evaluate: EvaluateConfig, model: ModelFacts) -> tuple[DataUse, ...]:
    """Return the data sets on which a model is measured."""
    return tuple(
        DataUse(need, ("evaluate", *need.field.split(".")), model, measures=True)
        for need in evaluation_needs(evaluate)
    )


class PlannedData:
    """Digests and facts of the data sets of a pipeline, each computed once.

    Problems that are found are added to ``problems``.
    """

    def __init__(self, pipeline: Pipeline, sources: SourceContext, problems: list[Problem]) -> None:
        self.pipeline, self.sources, self.problems = pipeline, sources, problems
        self._digests: dict[str, str] = {}
        self._unusable: set[str] = set()
        """Data sets with problems of their own, of which nothing more is known."""
        self._facts: dict[str, DataFacts] = {}

    def check_sets(self) -> None:
        """Check every data set by itself, such as for missing files."""
        for name, data_set in self.pipeline.data.items():
            if found := data_set_problems(data_set, self.pipeline.document, self.sources):
                self._unusable.add(name)
                self.problems += found

    def digest(self, name: str) -> str:
        """Return the digest of a data set; its name if the set cannot be used."""
        if name in self._unusable:
            return name
        if name not in self._digests:
            data_set = self.pipeline.data[name]
            self._digests[name] = name
            try:
                self._digests[name] = data_set.source.digest(data_set.config, self.sources)
            except CompressError as error:
                self._add_problem(name, error)
        return self._digests[name]

    def _add_problem(self, name: str, error: CompressError) -> None:
        self.problems.append(
            self.pipeline.document.problem(("data", name), error.what, remedy=error.remedy)
        )

    def facts(self, name: str) -> DataFacts:
        """Return what is known of a data set; nothing if that cannot be determined."""
        if name in self._unusable:
            return DataFacts()
        if name not in self._facts:
            data_set = self.pipeline.data[name]
            self._facts[name] = DataFacts()
            try:
                self._facts[name] = data_set.source.facts(data_set.config, self.sources)
            except CompressError as error:
                self._add_problem(name, error)
        return self._facts[name]

    def check(self, uses: Iterable[DataUse]) -> None:
        """Compare data sets with the models that run on them."""
        for use in uses:
            facts = self.facts(use.need.data)
            for what, remedy in planned_problems(use.need, facts, use.signature()):
                self.problems.append(
                    self.pipeline.document.problem(use.location, what, remedy=remedy)
                )

    def check_metrics(self, evaluate: EvaluateConfig, model: ModelFacts) -> None:
        """Check that metrics and their fields apply to a model that is measured."""
        self._check_generation(evaluate.generation, model)
        signature, accuracy = model.signature(), evaluate.accuracy
        if signature is None or accuracy is None:
            return
        facts = self.facts(accuracy.data)
        findings = list(accuracy_problems(accuracy, facts, signature))
        if model.graph is not None and model.activation_bits is not None:
            findings += generation_problems(accuracy, signature)
        for field, (what, remedy) in findings:
            location = ("evaluate", "accuracy", field)
            self.problems.append(self.pipeline.document.problem(location, what, remedy=remedy))

    def _check_generation(self, config: GenerationConfig | None, model: ModelFacts) -> None:
        """Check that a model generates without an encoder, and has the context for the answers."""
        architecture = None if config is None else model.architecture()
        if config is None or architecture is None:
            return
        for what, remedy in timed_generation_problems(config, architecture):
            problem = self.pipeline.document.problem
            self.problems.append(problem(("evaluate", "generation"), what, remedy=remedy))
