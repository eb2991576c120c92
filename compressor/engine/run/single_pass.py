"""A single pass or measurement on any artifact, as a pipeline of one step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory, gettempdir
from typing import Any

from compressor.artifacts.artifact import MANIFEST, Artifact, verify
from compressor.config.document import Document, read_document
from compressor.data.contract import SourceContext
from compressor.engine import events
from compressor.engine.plan.pipeline import (
    Pipeline,
    load_pipeline,
    override,
    pipeline_from_document,
    reference_of,
)
from compressor.engine.plan.plan import PassBuilder, Plan
from compressor.engine.run.runner import load_given
from compressor.engine.run.step_builder import StepBuilder, unexpected_error
from compressor.errors import CompressError, GpuError, UsageError
from compressor.evaluation.measure import measure
from compressor.evaluation.metrics import reference_metrics
from compressor.evaluation.protocol import ReferenceModel
from compressor.evaluation.records import EvaluateConfig, Measurement
from compressor.foreign_files.real_path import real_path
from compressor.runtimes.formats import StoredModel


def single_pass(
    pass_type: str, model: Path, borrow: Path | None, fields: Sequence[str]
) -> Pipeline:
    """Return the pipeline of one pass over ``model``.

    Args:
        pass_type: the pass.
        model: an artifact, or a model's folder or file.
        borrow: a pipeline file whose ``data:`` and ``evaluate:`` are used.
        fields: ``key=value`` for fields of the pass. Keys that start with ``evaluate.`` override
            the borrowed section, such as a reference to a step that does not exist here.

    Raises:
        ConfigError: the pass is unknown, or a field does not fit.
        UsageError: a field is not ``key=value``.
    """
    borrowed: dict[str, Any] = {}
    if borrow is not None:
        tree = read_document(borrow).tree
        borrowed = {
            key: tree[key] for key in ("data", "evaluate", "threads", "seed") if key in (tree or {})
        }
    measured = [field for field in fields if field.startswith("evaluate.")]
    borrowed = override(Document(borrow, borrowed), measured).tree
    step = override(Document(None, {}), [field for field in fields if field not in measured]).tree
    tree = {
        "version": 1,
        "name": f"pass-{pass_type}",
        "model": {"path": str(model.absolute()), "measure": False},
        **borrowed,
        "passes": [{"type": pass_type, **step}],
    }
    return pipeline_from_document(Document(borrow, tree))


def preview(plan: Plan, listener: events.Listener) -> list[Mapping[str, Any]]:
    """Return the decisions that the plan's last step would take; nothing is written to the store.

    Raises:
        CompressError: the pass refuses its input or its config, or fails. The traceback of a
            failure is written to the system's temporary folder.
    """
    step = list(plan.steps)[-1]
    if not isinstance(step.builder, PassBuilder) or not step.builder.previews:
        return []
    builder = StepBuilder(plan, listener, lambda *_: None)
    builder.emit(events.StepStarted(step.name, step.pass_name, step.directory, resumed=False))
    with TemporaryDirectory() as source, TemporaryDirectory() as work:
        for needed in (plan.step(name) for name in dict.fromkeys(step.inputs.values())):
            if needed.given is not None:
                verify(needed.given)
            builder.artifacts[needed.name] = needed.given or builder.build_unpublished(
                needed, Path(source)
            )
        inputs = {role: builder.artifacts[name] for role, name in step.inputs.items()}
        context = builder.context(step, Path(work), inputs, [])
        try:
            with builder.limited_calls(inputs, Path(work)):
                builder.require(step, inputs, context)
                return step.builder.preview(inputs, context)
        except CompressError:
            raise
        except Exception as error:
            raise unexpected_error(step, error, Path(gettempdir())) from error


def measure_artifact(
    artifact: Artifact,
    pipeline_file: Path,
    overrides: Sequence[str],
    listener: events.Listener,
    *,
    allow_code: bool,
    accuracy: bool,
) -> Measurement:
    """Measure an artifact by ``evaluate:`` of a pipeline file; nothing is written.

    Raises:
        GpuError: only latency is requested, of an engine that cannot run here.
        UsageError: the file measures nothing, or compares with a step, which does not exist here.
    """
    pipeline = load_pipeline(pipeline_file, overrides)
    evaluate = pipeline.config.evaluate
    if not accuracy:
        evaluate = evaluate.without_accuracy()
    if evaluate.measures_nothing:
        raise UsageError(
            f"{pipeline_file} measures nothing", remedy="give it an `evaluate:` section"
        )
    _refuse_random(evaluate, pipeline, SourceContext(pipeline.base, allow_code))
    measurement = measure(
        StoredModel.of(artifact),
        evaluate,
        {name: data.config.model_dump(mode="json") for name, data in pipeline.data.items()},
        SourceContext(pipeline.base, allow_code),
        reference=_reference(evaluate, pipeline.base),
        progress=lambda what, done, total: listener(
            events.StepProgress(artifact.name, what, done, total)
        ),
    )
    if measurement.stand_in is not None and measurement.accuracy is None:
        raise GpuError(f"the latency of {artifact.name} is not measured: {measurement.stand_in}")
    for note in measurement.notes:
        listener(events.StepNote(artifact.name, note))
    return measurement


def _refuse_random(evaluate: EvaluateConfig, pipeline: Pipeline, context: SourceContext) -> None:
    """Check that accuracy is not measured on random inputs.

    Raises:
        UsageError: it would be.
    """
    if evaluate.accuracy is None:
        return
    data = pipeline.data[evaluate.accuracy.data]
    if data.source.facts(data.config, context).is_random:
        raise UsageError(
            f"data set {data.name!r} is random, and nothing but latency can be measured on it",
            remedy="name real samples in `evaluate.accuracy.data`, or run `bench`",
        )


def _reference(evaluate: EvaluateConfig, base: Path) -> ReferenceModel | None:
    """Return the artifact folder that ``evaluate:`` compares with, if it compares."""
    name = reference_of(evaluate)
    if name is None or evaluate.accuracy is None:
        return None
    folder = real_path(base / name)
    if not (folder / MANIFEST).is_file():
        metrics = " and ".join(reference_metrics(evaluate.accuracy.metrics))
        raise UsageError(
            f"{metrics} compare with {name!r}, which is not an artifact: there is none at {folder}",
            remedy="give `--set evaluate.accuracy.reference=<artifact>`, relative to the pipeline "
            "file, or `--set evaluate.accuracy.metrics=[top1]`",
        )
    artifact = load_given(folder)
    return ReferenceModel(id=artifact.id, format=artifact.manifest.format, model=artifact.model)
