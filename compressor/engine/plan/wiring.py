"""Whether the parts of a pipeline fit: names lead somewhere, steps come in order, kinds follow each other."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from compressor.config.discovery import suggestion
from compressor.config.validation import references
from compressor.data.contract import SourceContext
from compressor.engine.gates.rules import gate_problems
from compressor.engine.plan.config import SOURCE
from compressor.engine.plan.pipeline import Pipeline, Step
from compressor.errors import Problem
from compressor.runtimes.formats import accepts


def wiring_problems(pipeline: Pipeline, sources: SourceContext) -> list[Problem]:
    """All that does not fit, with places."""
    return _Wiring(pipeline, sources).problems_found()


def format_problem(pipeline: Pipeline, step: Step, parent: str, format_name: str) -> Problem:
    """Return the problem of a step that cannot read the format that its parent writes."""
    readable = " or ".join(sorted(step.pass_.accepts))
    what = f"{step.pass_.name} cannot follow {parent}: it reads {readable}, not {format_name}"
    return pipeline.document.problem(
        ("passes", step.index), what, remedy="reorder the steps, or branch with `from:`"
    )


class _Wiring:
    def __init__(self, pipeline: Pipeline, sources: SourceContext) -> None:
        self.pipeline, self.sources = pipeline, sources
        self.problems: list[Problem] = []

    def problems_found(self) -> list[Problem]:
        self._check_data()
        self._check_evaluate()
        self._check_order()
        return self.problems + gate_problems(self.pipeline)

    def _problem(self, at: tuple[str | int, ...], what: str, **more: str | None) -> None:
        self.problems.append(self.pipeline.document.problem(at, what, **more))

    def _check_data(self) -> None:
        for name, one in self.pipeline.data.items():
            for text in one.source.problems(one.config, self.sources):
                self._problem(("data", name), text)

    def _check_evaluate(self) -> None:
        evaluate = self.pipeline.config.evaluate
        steps = frozenset({SOURCE, *(step.name for step in self.pipeline.steps)})
        self._check_references(evaluate, ("evaluate",), steps, "a step")
        if (
            evaluate.accuracy is None
            and evaluate.latency is not None
            and evaluate.latency.data is None
        ):
            self._problem(
                ("evaluate", "latency"),
                "names no data to feed",
                remedy="add `data: <set>`, or `accuracy:`",
            )

    def _check_references(
        self,
        record: Any,
        at: tuple[str | int, ...],
        steps: frozenset[str],
        called: str = "an earlier step",
    ) -> None:
        for place, reference, value in references(record):
            if reference.to == "data" and value not in self.pipeline.data:
                known = list(self.pipeline.data)
                self._problem(
                    (*at, *place),
                    f"there is no data set {value!r}",
                    remedy=suggestion(value, known),
                )
            elif (
                reference.to == "step"
                and value not in steps
                and not (self.pipeline.base / value).is_dir()
            ):
                what = f"{value!r} is neither {called} nor an artifact directory"
                self._problem((*at, *place), what, remedy=suggestion(value, sorted(steps)))
            elif reference.made_by is not None and value in steps:
                self._check_maker(value, reference.made_by, (*at, *place))

    def _check_maker(self, name: str, wanted: str, at: tuple[str | int, ...]) -> None:
        makers = {step.name: step.pass_.name for step in self.pipeline.steps}
        if makers.get(name) != wanted:
            some = [step for step, maker in makers.items() if maker == wanted]
            what = f"{name!r} is {makers.get(name, 'the source')}, and a {wanted} step is expected"
            self._problem(
                (*at,),
                what,
                remedy=f"there are: {', '.join(some)}" if some else f"add a {wanted} step",
            )

    def _check_order(self) -> None:
        """``from:`` and other step names must lead to earlier steps; kinds must fit."""
        steps = {step.name: step for step in self.pipeline.steps}
        earlier = {SOURCE}
        for step in self.pipeline.steps:
            at = ("passes", step.index)
            if step.parent not in earlier:
                if step.parent not in steps:
                    remedy = suggestion(step.parent, sorted({SOURCE, *steps} - {step.name}))
                    self._problem(
                        (*at, "from"),
                        f"`from: {step.parent}` leads nowhere: no such step",
                        remedy=remedy,
                    )
                elif circle := _circle(step, steps):
                    self._problem(
                        (*at, "from"),
                        f"`from:` goes in a circle: {' → '.join(circle)}",
                        remedy="break it",
                    )
                else:
                    self._problem(
                        (*at, "from"),
                        f"`from: {step.parent}` names a later step",
                        remedy="move that step up",
                    )
            self._check_references(step.config, at, frozenset(earlier))
            parent = steps.get(step.parent)
            if parent is not None and not accepts(step.pass_.accepts, parent.pass_.produces):
                named = f"{parent.name} ({parent.pass_.name})"
                self.problems.append(
                    format_problem(self.pipeline, step, named, parent.pass_.produces)
                )
            earlier.add(step.name)


def _circle(step: Step, steps: Mapping[str, Step]) -> list[str] | None:
    seen = [step.name]
    name = step.parent
    while name in steps:
        seen.append(name)
        if name == step.name:
            return seen
        if name in seen[:-1]:
            return None
        name = steps[name].parent
    return None
