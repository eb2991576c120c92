"""One pass, or one measurement, by hand: a pipeline of a single step over any artifact."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory, gettempdir
from typing import Any

from compressor.artifacts.store import Artifact, verify
from compressor.config.document import Document, read_document
from compressor.data.contract import SourceContext
from compressor.engine import events
from compressor.engine.pipeline import Pipeline, load_pipeline, override, pipeline_from_document
from compressor.engine.plan import PassBuilder, Plan
from compressor.engine.runner import Runner, unexpected
from compressor.errors import CompressError, UsageError
from compressor.evaluation.measure import measure
from compressor.evaluation.records import Measurement


def single_pass(pass_type: str, model: Path, borrow: Path | None, fields: Sequence[str]) -> Pipeline:
    """The pipeline of one pass over ``model``; ``data:`` and ``evaluate:`` come from the file ``borrow``.

    Raises:
        ConfigError: the pass is unknown, or a field does not fit.
        UsageError: a field is not ``key=value``.
    """
    borrowed: Mapping[str, Any] = {}
    if borrow is not None:
        tree = read_document(borrow).tree
        borrowed = {key: tree[key] for key in ("data", "evaluate", "threads", "seed") if key in (tree or {})}
    step = override(Document(None, {}), fields).tree if fields else {}
    tree = {
        "version": 1,
        "name": f"pass-{pass_type}",
        "model": {"path": str(model.resolve()), "measure": False},
        **borrowed,
        "passes": [{"type": pass_type, **step}],
    }
    return pipeline_from_document(Document(borrow, tree))


def preview(plan: Plan, listener: events.Listener) -> list[Mapping[str, Any]]:
    """What the plan's only step would decide, as its pass tells; nothing is written.

    Raises:
        UsageError: the pass reads a model directory, which is no artifact yet.
        CompressError: the pass refuses its input or its config, or fails; a traceback then lies in the system's temporary
            folder, as nothing is written to the store.
    """
    step = list(plan.steps)[-1]
    if not isinstance(step.builder, PassBuilder) or not step.builder.previews:
        return []
    given = {one.name: one.given for one in plan.steps}
    inputs = {role: artifact for role, name in step.inputs.items() if (artifact := given[name]) is not None}
    if len(inputs) < len(step.inputs):
        raise UsageError(
            f"{step.pass_name} can show its decisions for an artifact only", remedy="run a pipeline to build one"
        )
    for artifact in inputs.values():
        verify(artifact)
    runner = Runner(plan, listener, lambda *_: None, selected=frozenset())
    with TemporaryDirectory() as work:
        context = runner.context(step, Path(work), inputs, [])
        try:
            step.builder.requires(inputs, context)
            return step.builder.preview(inputs, context)
        except CompressError:
            raise
        except Exception as error:
            raise unexpected(step, error, Path(gettempdir())) from error


def measure_artifact(
    artifact: Artifact,
    pipeline_file: Path,
    overrides: Sequence[str],
    listener: events.Listener,
    *,
    allow_code: bool,
    accuracy: bool,
) -> Measurement:
    """Measure an artifact as ``evaluate:`` of a pipeline file says; nothing is written.

    Raises:
        UsageError: the file asks for nothing that could be measured.
    """
    pipeline = load_pipeline(pipeline_file, overrides)
    evaluate = pipeline.config.evaluate
    if not accuracy:
        data = evaluate.latency.data if evaluate.latency else None
        if evaluate.latency is not None and data is None and evaluate.accuracy is not None:
            data = evaluate.accuracy.data
        latency = evaluate.latency.model_copy(update={"data": data}) if evaluate.latency else None
        evaluate = evaluate.model_copy(update={"accuracy": None, "latency": latency})
    if evaluate.accuracy is None and evaluate.latency is None:
        raise UsageError(f"{pipeline_file} measures nothing", remedy="give it an `evaluate:` section")
    return measure(
        artifact.manifest.kind,
        artifact.model,
        evaluate,
        {name: one.config.model_dump(mode="json") for name, one in pipeline.data.items()},
        SourceContext(pipeline.base, allow_code),
        progress=lambda what, done, total: listener(events.StepProgress(artifact.name, what, done, total)),
    )
