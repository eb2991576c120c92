"""Tests of the measuring process: its results, its failures, and its end."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from compressor.data.contract import SourceContext
from compressor.errors import (
    CompressError,
    ConfigError,
    DataError,
    GateError,
    ModelError,
    PassError,
    Problem,
    UsageError,
)
from compressor.evaluation.measure import evaluation_digest, measure
from compressor.evaluation.protocol import Answer, Failure, ReferenceModel
from compressor.evaluation.records import AccuracyConfig, EvaluateConfig, LatencyConfig
from compressor.runtimes.formats import StoredModel, format_named

pytestmark = pytest.mark.usefixtures("cold_workers")
EVALUATE = EvaluateConfig(
    accuracy=AccuracyConfig(data="test"), latency=LatencyConfig(warmup=1, repeats=5, threads=1)
)
SOURCES = {"test": {"source": "tiny"}, "unused": {"source": "no-such-source"}}


def measure_tiny(
    format_name, folder, tmp_path, evaluate=EVALUATE, progress=lambda *_: None, **source
):
    sources = {**SOURCES, "test": {"source": "tiny", **source}}
    return measure(
        StoredModel(format_named(format_name), folder),
        evaluate,
        sources,
        SourceContext(tmp_path, cache=tmp_path),
        progress=progress,
    )


def test_torch_and_onnx_models_are_measured_alike(tiny_model, onnx_model, tmp_path):
    progress = []
    torch = measure_tiny(
        "torch", tiny_model, tmp_path, progress=lambda *event: progress.append(event)
    )
    onnx = measure_tiny("onnx", onnx_model, tmp_path)
    for result, runtime in ((torch, "torch "), (onnx, "onnxruntime ")):
        assert result.latency.runtime.startswith(runtime)
        assert len(result.latency.milliseconds) == 5
        assert result.accuracy.samples == 40
        names = {metric.name for metric in result.metrics}
        assert {
            "top1",
            "top1[input=speech]",
            "latency_p50_ms",
            "throughput",
            "peak_rss_bytes",
        } <= names
        assert {"size_bytes", "parameters", "macs"} <= names
    assert [metric.name for metric in torch.metrics] == [metric.name for metric in onnx.metrics]
    assert ("accuracy", 40, 40) in progress
    assert ("latency", 5, 5) in progress
    # A process that measures ONNX never loads torch, which alone takes more than this.
    peaks = [
        next(m.value for m in result.metrics if m.name == "peak_rss_bytes")
        for result in (torch, onnx)
    ]
    assert peaks[1] < 150e6 < peaks[0]


def test_only_the_sections_of_evaluate_are_measure_tiny(onnx_model, tmp_path):
    latency = EvaluateConfig(latency=LatencyConfig(data="test", warmup=0, repeats=2))
    assert measure_tiny("onnx", onnx_model, tmp_path, latency).accuracy is None
    accuracy = EvaluateConfig(accuracy=AccuracyConfig(data="test"))
    assert measure_tiny("onnx", onnx_model, tmp_path, accuracy).latency is None


def test_an_error_in_the_process_is_raised_as_the_same_class(onnx_model, tmp_path):
    with pytest.raises(DataError) as caught:
        measure_tiny("onnx", onnx_model, tmp_path, fail="data")
    assert (caught.value.what, caught.value.remedy) == ("the samples are gone", "bring them back")
    with pytest.raises(ModelError, match=r"model\.onnx is missing"):
        measure_tiny("onnx", tmp_path, tmp_path)


def test_a_data_set_that_is_not_defined_is_an_error(tmp_path):
    with pytest.raises(UsageError, match="not in `data:`: test"):
        measure(StoredModel(format_named("onnx"), tmp_path), EVALUATE, {}, SourceContext(tmp_path))


def test_the_error_of_a_crash_ends_with_the_last_lines_of_output(onnx_model, tmp_path):
    with pytest.raises(
        PassError, match=r"was killed by signal 6 \(Aborted\):\n    a library that prints to stdout"
    ):
        measure_tiny("onnx", onnx_model, tmp_path, fail="crash")
    with pytest.raises(CompressError, match="unexpected ZeroDivisionError: a bug of ours"):
        measure_tiny("onnx", onnx_model, tmp_path, fail="bug")


_PARENT = """
import sys
from pathlib import Path
from compressor.data.contract import SourceContext
from compressor.evaluation.measure import measure
from compressor.evaluation.records import AccuracyConfig, EvaluateConfig
from compressor.runtimes.formats import StoredModel, format_named
base = Path(sys.argv[1])
model = StoredModel(format_named("onnx"), base)
measure(model, EvaluateConfig(accuracy=AccuracyConfig(data="test")),
        {"test": {"source": "tiny", "fail": "hang"}}, SourceContext(base, cache=base))
"""


@pytest.mark.parametrize("signal_number", [signal.SIGKILL, signal.SIGINT])
def test_the_process_ends_when_its_parent_ends(onnx_model, signal_number):
    parent = subprocess.Popen(
        [sys.executable, "-c", _PARENT, str(onnx_model)], stderr=subprocess.DEVNULL
    )
    try:
        child = int(
            _eventually(
                lambda: (onnx_model / "pid").read_text() if (onnx_model / "pid").is_file() else ""
            )
        )
        parent.send_signal(signal_number)
        parent.wait(timeout=10)
        _eventually(lambda: not _alive(child))
    finally:
        parent.kill()


def _eventually(condition):
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        if result := condition():
            return result
        time.sleep(0.02)
    raise AssertionError("the condition did not hold within 30 seconds")


def _alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"


def test_errors_keep_their_class_in_messages():
    for error in (
        GateError("too slow", remedy="be faster"),
        ConfigError([Problem("a.b", "is wrong")]),
    ):
        failure = Answer.model_validate_json(
            Answer(failure=Failure.from_error(error)).model_dump_json()
        ).failure
        restored = failure.to_error()
        assert type(restored) is type(error)
        assert (str(restored), restored.exit_code) == (str(error), error.exit_code)
    assert type(Failure(error="SomethingElse", what="odd").to_error()) is PassError


def test_the_digest_depends_on_the_section_and_the_data():
    first = evaluation_digest(EVALUATE, {"test": "a"}, None)
    assert first == evaluation_digest(EVALUATE.model_copy(), {"test": "a"}, None)
    assert first != evaluation_digest(EVALUATE, {"test": "b"}, None)
    assert first != evaluation_digest(
        EvaluateConfig(accuracy=EVALUATE.accuracy), {"test": "a"}, None
    )


def test_the_digest_depends_on_the_reference_but_not_on_its_name():
    sections = [
        EvaluateConfig(accuracy=AccuracyConfig(data="test", metrics=("kl",), reference=name))
        for name in ("one", "two")
    ]
    first = evaluation_digest(sections[0], {"test": "a"}, "id")
    assert first == evaluation_digest(sections[1], {"test": "a"}, "id")
    assert first != evaluation_digest(sections[0], {"test": "a"}, "another id")


COMPARISON = EvaluateConfig(
    accuracy=AccuracyConfig(data="test", metrics=("agreement", "kl"), bootstrap=0)
)


def compare_with_reference(format_name, folder, tmp_path, other_format, other, evaluate=COMPARISON):
    reference = ReferenceModel(id="abc", format=other_format, model=other)
    context = SourceContext(tmp_path, cache=tmp_path)
    measurement = measure(
        StoredModel(format_named(format_name), folder),
        evaluate,
        SOURCES,
        context,
        reference=reference,
    )
    assert measurement.accuracy.reference == "abc"
    return {metric.name: metric.value for metric in measurement.metrics}


def test_models_of_different_formats_are_compared(tiny_model, onnx_model, tmp_path):
    onnx_torch = compare_with_reference("onnx", onnx_model, tmp_path, "torch", tiny_model)
    torch_onnx = compare_with_reference("torch", tiny_model, tmp_path, "onnx", onnx_model)
    assert 0 < onnx_torch["agreement"] == torch_onnx["agreement"] < 1
    assert onnx_torch["kl"] > 0
    assert torch_onnx["kl"] > 0
    assert onnx_torch["kl"] != torch_onnx["kl"], "the divergence is from the reference"


@pytest.mark.parametrize("copied", [False, True])
def test_a_model_agrees_with_itself(tiny_model, tmp_path, copied):
    reference = shutil.copytree(tiny_model, tmp_path / "copy") if copied else tiny_model
    values = compare_with_reference("torch", tiny_model, tmp_path, "torch", reference)
    assert (values["agreement"], values["kl"]) == (1.0, 0.0)
    assert (values["agreement[input=speech]"], values["kl[input=speech]"]) == (1.0, 0.0)


def test_the_reference_is_opened_after_memory_is_measure_tiny(tiny_model, onnx_model, tmp_path):
    evaluate = COMPARISON.model_copy(update={"latency": EVALUATE.latency})
    values = compare_with_reference("onnx", onnx_model, tmp_path, "torch", tiny_model, evaluate)
    assert values["peak_rss_bytes"] < 150e6, (
        "torch, which the reference needs, takes more than this"
    )


def test_a_comparison_without_a_reference_is_an_error(onnx_model, tmp_path):
    with pytest.raises(
        UsageError, match="agreement and kl compare with a reference, and there is none"
    ):
        measure_tiny("onnx", onnx_model, tmp_path, COMPARISON)


def test_perplexity_of_a_language_model_equals_that_of_torch(tmp_path):
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers

    from compressor.models.families.transformers.family import Transformers

    family, modules = Transformers(), []
    for name in ("model", "reference"):
        modules.append(family.build(family.presets["tiny-llama"]).eval())
        family.save(modules[-1], family.presets["tiny-llama"], tmp_path / name)
    tokenizer = Tokenizer(models.WordLevel({"a": 3, "b": 4, "c": 5}, unk_token="a"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "text.txt").write_text("a b c b a c a a " * 7)
    source = {
        "source": "text",
        "path": "text.txt",
        "tokenizer": "tokenizer.json",
        "sequence_length": 6,
    }
    measurement = measure(
        StoredModel(format_named("torch"), tmp_path / "model"),
        EvaluateConfig(
            accuracy=AccuracyConfig(data="text", metrics=("perplexity", "agreement"), batch_size=3)
        ),
        {"text": source},
        SourceContext(tmp_path, cache=tmp_path),
        reference=ReferenceModel(id="abc", format="torch", model=tmp_path / "reference"),
    )
    windows = torch.tensor([3, 4, 5, 4, 3, 5, 3, 3] * 7).reshape(8, 7)
    with torch.inference_mode():
        logits, reference_logits = (
            module(input_ids=windows[:, :-1])["logits"] for module in modules
        )
    entropy = torch.nn.functional.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten())
    values = {metric.name: metric.value for metric in measurement.metrics}
    assert values["perplexity"] == pytest.approx(float(entropy.exp()), rel=1e-4)
    assert values["agreement"] == pytest.approx(
        float((logits.argmax(-1) == reference_logits.argmax(-1)).float().mean())
    )
    assert (
        measurement.accuracy.samples,
        measurement.accuracy.predictions,
        measurement.accuracy.labels,
    ) == (
        8,
        (),
        (),
    )
