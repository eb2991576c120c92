"""Check that the parts of a pipeline fit: names exist, steps are in order, formats match."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from compressor.config.discovery import suggestion
from compressor.config.validation import references
from compressor.engine.plan.capabilities import installed_passes
from compressor.engine.plan.config import SOURCE
from compressor.engine.plan.gate_problems import gate_problems
from compressor.engine.plan.pipeline import Pipeline, Step
from compressor.errors import Problem
from compressor.runtimes.formats import accepts, format_named


def wiring_problems(pipeline: Pipeline) -> list[Problem]:
    """Return everything that does not fit, with its place in the file."""
    return _Wiring(pipeline).check()


def format_problem(pipeline: Pipeline, step: Step, parent: str, format_name: str) -> Problem:
    """Return the problem of a step that cannot read the format that its parent writes."""
    readable = " or ".join(sorted(step.pass_.accepts))
    what = f"{step.pass_.name} cannot follow {parent}: it reads {readable}, not {format_name}"
    remedy = _way_to_read(pipeline, step, format_name)
    return pipeline.document.problem(("passes", step.index), what, remedy=remedy)


def format_read(pipeline: Pipeline, step: Step, source_format: str | None = None) -> str | None:
    """Return the format that a step reads, through parents that keep that of their own parent.

    None if it is that of the source, and ``source_format`` is None.
    """
    steps = {other.name: other for other in pipeline.steps}
    seen: set[str] = set()
    name = step.parent
    while name in steps and name not in seen:
        seen.add(name)
        if not steps[name].pass_.keeps_format:
            return steps[name].pass_.produces
        name = steps[name].parent
    return source_format if name == SOURCE else None


def _way_to_read(pipeline: Pipeline, step: Step, format_name: str) -> str:
    """Return how a step gets a format that it reads: from earlier steps, or from another pass."""
    earlier = [
        other.name
        for other in pipeline.steps[: step.index]
        if accepts(step.pass_.accepts, other.pass_.produces)
    ]
    if step.parent != SOURCE and pipeline.config.model.family and "torch" in step.pass_.accepts:
        earlier.insert(0, SOURCE)
    if earlier:
        return f"let it read another step: `from: {earlier[-1]}`"
    before = [
        pass_.name
        for pass_ in installed_passes()
        if accepts(pass_.accepts, format_name) and accepts(step.pass_.accepts, pass_.produces)
    ]
    if before:
        return f"put a step of {' or '.join(before)} before it"
    readers = [pass_.name for pass_ in installed_passes() if accepts(pass_.accepts, format_name)]
    readable = " or ".join(sorted(step.pass_.accepts))
    return format_named(format_name).default_remedy or (
        f"let it read a {readable} model: that which the {format_name} model was made from, as "
        f"`model.path` or as the step that `from:` names; passes that read {format_name}: "
        f"{', '.join(readers) or 'none'}"
    )


class _Wiring:
    def __init__(self, pipeline: Pipeline) -> None:
        self.pipeline = pipeline
        self.problems: list[Problem] = []

    def check(self) -> list[Problem]:
        self._check_evaluate()
        self._check_order()
        return self.problems + gate_problems(self.pipeline)

    def _problem(self, at: tuple[str | int, ...], what: str, **more: str | None) -> None:
        self.problems.append(self.pipeline.document.problem(at, what, **more))

    def _check_evaluate(self) -> None:
        evaluate = self.pipeline.config.evaluate
        steps = frozenset({SOURCE, *(step.name for step in self.pipeline.steps)})
        self._check_references(evaluate, ("evaluate",), steps, "a step")
        for name in ("latency", "generation"):
            section = getattr(evaluate, name)
            if evaluate.accuracy is None and section is not None and section.data is None:
                self._problem(
                    ("evaluate", name),
                    "names no data to run the model on",
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

    def _check_maker(self, name: str, expected: str, at: tuple[str | int, ...]) -> None:
        makers = {step.name: step.pass_.name for step in self.pipeline.steps}
        if makers.get(name) != expected:
            candidates = [step for step, maker in makers.items() if maker == expected]
            what = (
                f"{name!r} is {makers.get(name, 'the source')}, and a {expected} step is expected"
            )
            self._problem(
                (*at,),
                what,
                remedy=f"one of {', '.join(candidates)}"
                if candidates
                else f"add a {expected} step",
            )

    def _check_order(self) -> None:
        """Check that step names refer to earlier steps, and that formats match."""
        steps = {step.name: step for step in self.pipeline.steps}
        earlier = {SOURCE}
        for step in self.pipeline.steps:
            at = ("passes", step.index)
            if step.parent not in earlier:
                if step.parent not in steps:
                    remedy = suggestion(step.parent, sorted({SOURCE, *steps} - {step.name}))
                    self._problem(
                        (*at, "from"),
                        f"`from: {step.parent}`: unknown step {step.parent!r}",
                        remedy=remedy,
                    )
                elif cycle := _cycle(step, steps):
                    self._problem(
                        (*at, "from"),
                        f"`from:` forms a cycle: {' → '.join(cycle)}",
                        remedy="make one of them read an earlier step",
                    )
                else:
                    self._problem(
                        (*at, "from"),
                        f"`from: {step.parent}` names a later step",
                        remedy="move that step up",
                    )
            self._check_references(step.config, at, frozenset(earlier))
            parent = steps.get(step.parent)
            read = format_read(self.pipeline, step)
            if parent is not None and read and not accepts(step.pass_.accepts, read):
                named = f"{parent.name} ({parent.pass_.name})"
                self.problems.append(format_problem(self.pipeline, step, named, read))
            earlier.add(step.name)


def _cycle(step: Step, steps: Mapping[str, Step]) -> list[str] | None:
    """Return the names along ``from:`` from a step back to itself; None if it leads elsewhere."""
    path = [step.name]
    name = step.parent
    while name in steps:
        path.append(name)
        if name == step.name:
            return path
        if name in path[:-1]:
            return None
        name = steps[name].parent
    return None
