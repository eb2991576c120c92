"""The process that measures: what it answers, how it fails, and how it dies."""

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

EVALUATE = EvaluateConfig(
    accuracy=AccuracyConfig(data="test"), latency=LatencyConfig(warmup=1, repeats=5, threads=1)
)
SOURCES = {"test": {"source": "tiny"}, "unused": {"source": "no-such-source"}}


def measured(format_name, folder, tmp_path, evaluate=EVALUATE, progress=lambda *_: None, **source):
    sources = {**SOURCES, "test": {"source": "tiny", **source}}
    return measure(
        StoredModel(format_named(format_name), folder),
        evaluate,
        sources,
        SourceContext(tmp_path, cache=tmp_path),
        progress=progress,
    )


@pytest.fixture
def onnx_model(tmp_path):
    """The input's first pixel, three times over."""
    from onnx import TensorProto, helper

    image = helper.make_tensor_value_info("image", TensorProto.UINT8, ["batch", 3, 8, 8])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 3])
    nodes = [
        helper.make_node("Cast", ["image"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("GlobalAveragePool", ["float"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["logits"]),
    ]
    graph = helper.make_graph(nodes, "tiny", [image], [logits])
    folder = tmp_path / "onnx"
    folder.mkdir()
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    return folder


def test_torch_and_onnx_answer_alike(tiny_model, onnx_model, tmp_path):
    told = []
    torch = measured("torch", tiny_model, tmp_path, progress=lambda *one: told.append(one))
    onnx = measured("onnx", onnx_model, tmp_path)
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
    assert ("accuracy", 40, 40) in told
    assert ("latency", 5, 5) in told
    # A process that measures ONNX never loads torch, which alone takes more than this.
    peaks = [
        next(m.value for m in one.metrics if m.name == "peak_rss_bytes") for one in (torch, onnx)
    ]
    assert peaks[1] < 150e6 < peaks[0]


def test_only_what_is_asked_for(onnx_model, tmp_path):
    latency = EvaluateConfig(latency=LatencyConfig(data="test", warmup=0, repeats=2))
    assert measured("onnx", onnx_model, tmp_path, latency).accuracy is None
    accuracy = EvaluateConfig(accuracy=AccuracyConfig(data="test"))
    assert measured("onnx", onnx_model, tmp_path, accuracy).latency is None


def test_an_error_of_the_users_comes_back_as_itself(onnx_model, tmp_path):
    with pytest.raises(DataError) as caught:
        measured("onnx", onnx_model, tmp_path, fail="data")
    assert (caught.value.what, caught.value.remedy) == ("the samples are gone", "bring them back")
    with pytest.raises(ModelError, match=r"model\.onnx is missing"):
        measured("onnx", tmp_path, tmp_path)


def test_a_set_that_is_not_there(tmp_path):
    with pytest.raises(UsageError, match="does not have: test"):
        measure(StoredModel(format_named("onnx"), tmp_path), EVALUATE, {}, SourceContext(tmp_path))


def test_a_crash_tells_the_end_of_what_it_printed(onnx_model, tmp_path):
    with pytest.raises(
        PassError, match="was killed by signal 6:\n    a library that prints to stdout"
    ):
        measured("onnx", onnx_model, tmp_path, fail="crash")
    with pytest.raises(
        PassError, match=r"ended with code 1:(.|\n)*ZeroDivisionError: a bug of ours"
    ):
        measured("onnx", onnx_model, tmp_path, fail="bug")


_PARENT = """
import sys
from pathlib import Path
from compressor.data.contract import SourceContext
from compressor.evaluation.measure import measure
from compressor.evaluation.records import AccuracyConfig, EvaluateConfig
from compressor.runtimes.formats import StoredModel, format_named
base = Path(sys.argv[1])
measure(StoredModel(format_named("onnx"), base), EvaluateConfig(accuracy=AccuracyConfig(data="test")),
        {"test": {"source": "tiny", "fail": "hang"}}, SourceContext(base, cache=base))
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_it_ends_with_whoever_asked(onnx_model, how):
    parent = subprocess.Popen(
        [sys.executable, "-c", _PARENT, str(onnx_model)], stderr=subprocess.DEVNULL
    )
    try:
        child = int(
            _eventually(
                lambda: (onnx_model / "pid").read_text() if (onnx_model / "pid").is_file() else ""
            )
        )
        parent.send_signal(how)
        parent.wait(timeout=10)
        _eventually(lambda: not _alive(child))
    finally:
        parent.kill()


def _eventually(condition):
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        if found := condition():
            return found
        time.sleep(0.02)
    raise AssertionError("it never came")


def _alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"


def test_errors_keep_their_class_on_the_way():
    for error in (
        GateError("too slow", remedy="be faster"),
        ConfigError([Problem("a.b", "is wrong")]),
    ):
        failure = Answer.model_validate_json(
            Answer(failure=Failure.of(error)).model_dump_json()
        ).failure
        rebuilt = failure.rebuilt()
        assert type(rebuilt) is type(error)
        assert (str(rebuilt), rebuilt.exit_code) == (str(error), error.exit_code)
    assert type(Failure(error="SomethingElse", what="odd").rebuilt()) is PassError


def test_the_digest_follows_what_is_asked_and_the_data():
    first = evaluation_digest(EVALUATE, {"test": "a"}, None)
    assert first == evaluation_digest(EVALUATE.model_copy(), {"test": "a"}, None)
    assert first != evaluation_digest(EVALUATE, {"test": "b"}, None)
    assert first != evaluation_digest(
        EvaluateConfig(accuracy=EVALUATE.accuracy), {"test": "a"}, None
    )


def test_the_digest_follows_the_reference_and_not_its_name():
    asked = [
        EvaluateConfig(accuracy=AccuracyConfig(data="test", metrics=("kl",), reference=name))
        for name in ("one", "two")
    ]
    first = evaluation_digest(asked[0], {"test": "a"}, "id")
    assert first == evaluation_digest(asked[1], {"test": "a"}, "id")
    assert first != evaluation_digest(asked[0], {"test": "a"}, "another id")


FIDELITY = EvaluateConfig(
    accuracy=AccuracyConfig(data="test", metrics=("agreement", "kl"), bootstrap=0)
)


def fidelity(format_name, folder, tmp_path, other_format, other, evaluate=FIDELITY):
    reference = ReferenceModel(id="abc", format=other_format, model=other)
    context = SourceContext(tmp_path, cache=tmp_path)
    found = measure(
        StoredModel(format_named(format_name), folder),
        evaluate,
        SOURCES,
        context,
        reference=reference,
    )
    assert found.accuracy.reference == "abc"
    return {metric.name: metric.value for metric in found.metrics}


def test_torch_is_compared_with_onnx_and_onnx_with_torch(tiny_model, onnx_model, tmp_path):
    one = fidelity("onnx", onnx_model, tmp_path, "torch", tiny_model)
    two = fidelity("torch", tiny_model, tmp_path, "onnx", onnx_model)
    assert 0 < one["agreement"] == two["agreement"] < 1
    assert one["kl"] > 0
    assert two["kl"] > 0
    assert one["kl"] != two["kl"], "the divergence is from the reference"


@pytest.mark.parametrize("elsewhere", [False, True])
def test_a_model_against_itself(tiny_model, tmp_path, elsewhere):
    reference = shutil.copytree(tiny_model, tmp_path / "copy") if elsewhere else tiny_model
    found = fidelity("torch", tiny_model, tmp_path, "torch", reference)
    assert (found["agreement"], found["kl"]) == (1.0, 0.0)
    assert (found["agreement[input=speech]"], found["kl[input=speech]"]) == (1.0, 0.0)


def test_the_reference_is_opened_after_latency_and_memory_were_taken(
    tiny_model, onnx_model, tmp_path
):
    evaluate = FIDELITY.model_copy(update={"latency": EVALUATE.latency})
    found = fidelity("onnx", onnx_model, tmp_path, "torch", tiny_model, evaluate)
    assert found["peak_rss_bytes"] < 150e6, "torch, which the reference needs, takes more than this"


def test_a_comparison_without_a_reference(onnx_model, tmp_path):
    with pytest.raises(
        UsageError, match="agreement and kl compare with a reference, and there is none"
    ):
        measured("onnx", onnx_model, tmp_path, FIDELITY)


def test_a_language_model_on_text(tmp_path):
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
    found = measure(
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
        mine, other = (module(input_ids=windows[:, :-1])["logits"] for module in modules)
    entropy = torch.nn.functional.cross_entropy(mine.flatten(0, 1), windows[:, 1:].flatten())
    figures = {metric.name: metric.value for metric in found.metrics}
    assert figures["perplexity"] == pytest.approx(float(entropy.exp()), rel=1e-4)
    assert figures["agreement"] == pytest.approx(
        float((mine.argmax(-1) == other.argmax(-1)).float().mean())
    )
    assert (found.accuracy.samples, found.accuracy.predictions, found.accuracy.labels) == (
        8,
        (),
        (),
    )
