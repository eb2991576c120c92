"""Pipelines measure a GGUF file in llama.cpp where it is installed, and otherwise say how."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from compressor.artifacts.store import Store
from compressor.data.contract import SourceContext
from compressor.engine.plan.pipeline import load_pipeline
from compressor.engine.plan.plan import Plan
from compressor.engine.plan.planner import make_plan
from compressor.evaluation.measure import measure
from compressor.evaluation.protocol import ReferenceModel
from compressor.reports.pages import runs
from compressor.runtimes.formats import StoredModel, format_named
from tests.support.gguf_checkpoints import export_gguf, save_gguf_parent

pytest.importorskip("gguf")

PIPELINE = """\
version: 1
name: gguf
model: {path: model}
data:
  texts: {source: text, path: texts/*.txt, tokenizer: model, sequence_length: 16}
evaluate:
  accuracy: {data: texts, metrics: [perplexity, kl], batch_size: 2}
  latency: {warmup: 0, repeats: 2, threads: 1}
passes:
  - {type: export-gguf, name: gguf}
"""


def plan_of(folder: Path) -> Plan:
    save_gguf_parent(folder / "model")
    (folder / "texts").mkdir()
    (folder / "texts" / "a.txt").write_text("the quick brown fox jumps over the lazy dog. " * 20)
    (folder / "pipeline.yaml").write_text(PIPELINE)
    pipeline = load_pipeline(folder / "pipeline.yaml")
    return make_plan(pipeline, Store(folder / "store"), SourceContext(folder))


def test_a_plan_names_the_extra_of_a_step_that_is_not_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gguf = type(format_named("gguf"))
    monkeypatch.setattr(gguf, "runtime", None)
    monkeypatch.setattr(gguf, "runtime_remedy", "pip install 'autoglm-compress[llamacpp]'")
    plan = plan_of(tmp_path)
    assert plan.notes == (
        "gguf files are not measured here: pip install 'autoglm-compress[llamacpp]'",
    )
    assert not plan.step("gguf").measured


def test_perplexity_kl_and_latency_are_measured_in_llamacpp(tmp_path: Path) -> None:
    """The measuring process loads torch too, for the reference: about 3 s."""
    pytest.importorskip("xllamacpp")
    plan = plan_of(tmp_path)
    assert not plan.notes
    assert plan.step("gguf").measured
    parent = save_gguf_parent(tmp_path / "model")
    file, _ = export_gguf(parent, tmp_path / "out")
    config = plan.pipeline.config
    measurement = measure(
        StoredModel(format_named("gguf"), file.parent),
        config.evaluate,
        config.data,
        SourceContext(tmp_path),
        reference=ReferenceModel(id="source", format="torch", model=tmp_path / "model"),
    )
    metrics = {metric.name: metric.value for metric in measurement.metrics}
    assert metrics["kl"] < 1e-3
    assert metrics["perplexity"] > 1
    assert measurement.latency is not None
    assert measurement.latency.runtime.startswith("llama.cpp b")


def test_the_report_of_a_run_names_the_extra_too(monkeypatch: pytest.MonkeyPatch) -> None:
    remedy = "pip install 'autoglm-compress[llamacpp]'"
    monkeypatch.setattr(type(format_named("gguf")), "runtime_remedy", remedy)

    def step(name: str, kind: str, runtime: str | None, measured: str) -> Any:
        manifest = SimpleNamespace(format=kind, measured=measured)
        artifact = SimpleNamespace(manifest=manifest)
        return SimpleNamespace(step=name, runtime=runtime, artifact=artifact)

    gguf = step("gguf", "gguf", None, "")
    source = step("source", "torch", "torch", "ab12")
    assert list(runs._unmeasured([source, gguf])) == [("gguf", f"not measured: {remedy}")]
    assert not list(runs._unmeasured([step("source", "torch", "torch", ""), gguf]))
