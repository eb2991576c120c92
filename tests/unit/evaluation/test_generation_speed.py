"""Generation: prompts from data, answers that are timed, and models that do not generate."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from calibration.sources.arrays import ArrayDataset
from compressor.data.contract import SourceContext
from compressor.engine.data_checks import timed_generation_problems
from compressor.errors import ConfigError, DataError, UsageError
from compressor.evaluation import generation, worker
from compressor.evaluation.generation import measure_generation, select_prompts
from compressor.evaluation.measure import make_request, measure
from compressor.evaluation.records import (
    AccuracyConfig,
    EvaluateConfig,
    GenerationConfig,
    LatencyConfig,
)
from compressor.models.architecture import Architecture
from compressor.models.capabilities.cached_generation import CachedGeneration
from compressor.models.capabilities.signature import InputSpec
from compressor.models.families.image_classifier.family import ImageClassifier
from compressor.reports.rows.artifact import generation_lines
from compressor.runtimes.call_limit import CallLimit
from compressor.runtimes.formats import StoredModel, format_named
from compressor.runtimes.rows import SingleRow
from tests.support.decoders import save_decoder

CLASSIFIER = ImageClassifier()
AUDIO = InputSpec("input_features", "float32", ("batch", 80, 3000))
TOKENS_NT = np.random.default_rng(0).integers(3, 380, (5, 12))
SHORT = GenerationConfig(prompt_tokens=20, new_tokens=4, repeats=3, threads=1)


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> StoredModel:
    folder = tmp_path_factory.mktemp("decoder") / "model"
    save_decoder(folder, "tiny-llama")
    return StoredModel(format_named("torch"), folder)


def texts(lengths: Any = None) -> ArrayDataset:
    arrays = {"input_ids": TOKENS_NT}
    if lengths is not None:
        arrays["attention_mask"] = (np.arange(12) < np.array(lengths)[:, None]).astype(np.int64)
    return ArrayDataset(arrays, tuple(arrays))


def test_prompts_are_spread_and_continue_with_the_next_samples() -> None:
    first, second, third = select_prompts(texts([12, 5, 12, 12, 3]), SHORT)
    assert first.tolist() == [*TOKENS_NT[0], *TOKENS_NT[1, :5], *TOKENS_NT[2, :3]]
    assert second.tolist() == [*TOKENS_NT[1, :5], *TOKENS_NT[2], *TOKENS_NT[3, :3]]
    assert third.tolist() == [*TOKENS_NT[3], *TOKENS_NT[4, :3], *TOKENS_NT[0, :5]]


def test_data_without_enough_text_is_refused() -> None:
    with pytest.raises(DataError, match=r"has 60 tokens, fewer than `prompt_tokens` \(61\)"):
        select_prompts(texts(), GenerationConfig(prompt_tokens=61))
    pictures = ArrayDataset({"image": np.zeros((2, 3, 4, 4), np.float32)}, ("image",))
    with pytest.raises(DataError, match="timed on texts, and the samples have image"):
        select_prompts(pictures, SHORT)


def test_every_answer_has_all_its_tokens(
    decoder: StoredModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    lengths: list[int] = []

    class Counted(SingleRow):
        def forward(self, ids_T: Any) -> Any:
            lengths.append(len(ids_T))
            return super().forward(ids_T)

    monkeypatch.setattr(generation, "SingleRow", Counted)
    done: list[tuple[str, int, int]] = []
    report = measure_generation(decoder, texts(), SHORT, lambda *step: done.append(step))
    assert lengths == 4 * [20, 1, 1, 1]  # one answer more than is timed
    assert done == [("generation", number, 3) for number in (1, 2, 3)]
    assert len(report.first_token_ms) == len(report.tokens_per_second) == 3
    metrics = {metric.name: metric for metric in report.metrics}
    assert metrics["tokens_per_second"].value == np.median(report.tokens_per_second)
    assert metrics["tokens_per_second"].better == "higher"
    assert metrics["first_token_ms"].value == np.median(report.first_token_ms)
    assert metrics["first_token_ms"].low is None  # three values bound no median
    generates = decoder.format.open_rows(decoder.path, generation.RowOptions(1, 1, 24))
    assert metrics["kv_cache_bytes"].value == 24 * generates.token_bytes
    assert generation_lines(report) == [
        "Generation with torch, 1 thread: 3 answers of 4 tokens to prompts of 20 tokens, one "
        "sequence at a time, in a separate process."
    ]


def test_a_model_that_does_not_generate_is_reported(onnx_model: Path) -> None:
    report = measure_generation(
        StoredModel(format_named("onnx"), onnx_model), texts(), SHORT, lambda *_: None
    )
    assert report.reason == "the artifact holds no model that generates text"
    assert report.metrics == ()
    [line] = generation_lines(report)
    assert line.startswith("Generation was not measured: the artifact holds")


def test_prompt_and_answer_must_fit_the_model(decoder: StoredModel) -> None:
    with pytest.raises(UsageError, match="have 100004 tokens; the model's context has"):
        long = SHORT.model_copy(update={"prompt_tokens": 100_000})
        measure_generation(decoder, texts(), long, lambda *_: None)
    beyond = ArrayDataset({"input_ids": TOKENS_NT + 10_000}, ("input_ids",))
    with pytest.raises(DataError, match="has the token 10"):
        measure_generation(decoder, beyond, SHORT, lambda *_: None)


def test_a_plan_refuses_what_the_context_cannot_hold(decoder: StoredModel, tmp_path: Path) -> None:
    from tests.support.cli import cli

    pipeline = tmp_path / "pipeline.yaml"
    pipeline.write_text(
        f"version: 1\nname: speed\nmodel: {{path: {decoder.path}}}\n"
        "data:\n  texts: {source: arrays, path: a.npz}\n"
        "evaluate:\n  generation: {data: texts, prompt_tokens: 100000}\n"
    )
    np.savez(tmp_path / "a.npz", input_ids=TOKENS_NT)
    result = cli("plan", pipeline)
    assert result.returncode == 2
    assert "pipeline.yaml:7" in result.stderr
    assert "prompt and answer have 100064 tokens" in result.stderr
    assert "lower `prompt_tokens` or `new_tokens`" in result.stderr


def test_a_plan_refuses_models_that_are_not_timed() -> None:
    classifier = Architecture(CLASSIFIER, CLASSIFIER.presets["tiny"])
    [(problem, remedy)] = timed_generation_problems(SHORT, classifier)
    assert problem == "this model of the family image-classifier generates no text"
    assert remedy == "remove `evaluate.generation`"
    speech = CachedGeneration(
        context_length=448, layers=2, key_heads=2, head_width=8, encoder_inputs=(AUDIO,)
    )
    model: Any = SimpleNamespace(capability=lambda _: speech)
    [(problem, _)] = timed_generation_problems(SHORT, model)
    assert problem == "the model has an encoder, and only decoders are timed"


def test_generation_is_measured_in_a_process_of_its_own(
    decoder: StoredModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    np.savez(tmp_path / "a.npz", input_ids=TOKENS_NT)
    sources = {"texts": {"source": "arrays", "path": "a.npz"}}
    evaluate = EvaluateConfig(
        accuracy=AccuracyConfig(data="texts", metrics=("kl",)), generation=SHORT
    )
    request = make_request(decoder, evaluate, sources, SourceContext(tmp_path), task="generation")
    assert request.threads == 1
    [answer] = worker._Worker(request, lambda *_: None, CallLimit(print)).measure_generation()
    assert answer.measurement is None
    names = {metric.name for metric in answer.generation.metrics}
    assert names == {
        *("first_token_ms", "tokens_per_second"),
        *("kv_cache_bytes", "generation_peak_rss_bytes"),
    }
    tasks = []

    def carried_out(request: Any, progress: Any) -> Any:
        tasks.append(request.task)
        accuracy = worker.Measurement(accuracy=None, latency=None, metrics=())
        return answer if request.task == "generation" else worker.Answer(measurement=accuracy)

    monkeypatch.setattr("compressor.evaluation.measure._result", carried_out)
    measurement = measure(decoder, evaluate, sources, SourceContext(tmp_path))
    assert tasks == ["measure", "generation"]
    assert measurement.generation == answer.generation
    assert {metric.name for metric in measurement.metrics} == names


def test_data_of_accuracy_stays_where_accuracy_is_left_out() -> None:
    evaluate = EvaluateConfig(
        accuracy=AccuracyConfig(data="texts"), latency=LatencyConfig(), generation=SHORT
    )
    rest = evaluate.without_accuracy()
    assert rest.generation is not None
    assert rest.generation.data == "texts"
    assert not rest.measures_nothing
    assert EvaluateConfig().measures_nothing
    with pytest.raises(ValidationError):
        GenerationConfig(new_tokens=1)


def test_a_gate_may_name_its_metrics(decoder: StoredModel, tmp_path: Path) -> None:
    from compressor.engine.plan.gate_problems import gate_problems
    from compressor.engine.plan.pipeline import load_pipeline

    text = (
        f"version: 1\nname: speed\nmodel: {{path: {decoder.path}}}\n"
        "data:\n  texts: {source: arrays, path: a.npz}\nevaluate: {%s}\n"
        "gates:\n  - {metric: tokens_per_second, min: 10}\n"
    )
    np.savez(tmp_path / "a.npz", input_ids=TOKENS_NT)
    for section, found in (("generation: {data: texts}", 0), ("latency: {data: texts}", 1)):
        (tmp_path / "pipeline.yaml").write_text(text % section)
        try:
            pipeline = load_pipeline(tmp_path / "pipeline.yaml")
        except ConfigError as error:
            assert found
            assert "nothing measures 'tokens_per_second'" in str(error)
        else:
            assert len(gate_problems(pipeline)) == found
