"""The limit of one call: a graph without end is an error, and slow models are measured."""

import threading
import time

import pytest

from compressor.data.contract import SourceContext
from compressor.errors import PassError
from compressor.evaluation.measure import measure
from compressor.evaluation.records import AccuracyConfig, EvaluateConfig, LatencyConfig
from compressor.runtimes.call_limit import CallLimit, default_call_seconds
from compressor.runtimes.formats import StoredModel, format_named


@pytest.fixture
def endless_model(onnx_model):
    """Return a folder with a graph that loops until a condition that stays true."""
    from onnx import TensorProto, helper

    body = helper.make_graph(
        [
            helper.make_node("Identity", ["condition"], ["condition_out"]),
            helper.make_node("Add", ["x", "x"], ["x_out"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("iteration", TensorProto.INT64, []),
            helper.make_tensor_value_info("condition", TensorProto.BOOL, []),
            helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3]),
        ],
        [
            helper.make_tensor_value_info("condition_out", TensorProto.BOOL, []),
            helper.make_tensor_value_info("x_out", TensorProto.FLOAT, ["batch", 3]),
        ],
    )
    nodes = [
        helper.make_node("Cast", ["image"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("GlobalAveragePool", ["float"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node("Loop", ["", "always", "flat"], ["logits"], body=body),
    ]
    graph = helper.make_graph(
        nodes,
        "endless",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["batch", 3, 8, 8])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 3])],
        [helper.make_tensor("always", TensorProto.BOOL, [], [True])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    (onnx_model / "model.onnx").write_bytes(model.SerializeToString())
    return onnx_model


@pytest.mark.parametrize(
    "sections",
    [
        {"latency": LatencyConfig(data="test", warmup=0, repeats=2, threads=1)},
        {"accuracy": AccuracyConfig(data="test")},
    ],
    ids=["latency", "accuracy"],
)
def test_a_graph_without_end_is_an_error_that_names_the_limit(endless_model, tmp_path, sections):
    evaluate = EvaluateConfig(call_timeout=1, **sections)
    sources = {"test": {"source": "tiny"}}
    start = time.monotonic()
    with pytest.raises(PassError, match=r"one call of the model has not ended after 1 s") as caught:
        measure(
            StoredModel(format_named("onnx"), endless_model),
            evaluate,
            sources,
            SourceContext(tmp_path, cache=tmp_path),
        )
    assert str(endless_model) in caught.value.what
    assert "`evaluate.call_timeout`" in caught.value.remedy
    assert time.monotonic() - start < 60


def test_many_calls_may_take_longer_than_the_limit_of_one():
    expired = threading.Event()
    limit = CallLimit(lambda seconds: expired.set())
    with limit.watch(0.5):
        for _ in range(8):
            time.sleep(0.1)
            limit.next_call()
    assert not expired.is_set()
    with limit.watch(0.1):
        assert expired.wait(10)


def test_metrics_after_the_last_call_have_no_limit():
    expired = threading.Event()
    limit = CallLimit(lambda seconds: expired.set())
    with limit.watch(0.2):
        limit.no_more_calls()
        assert not expired.wait(0.5)


def test_the_default_grows_with_the_model_and_the_batch(tmp_path):
    assert default_call_seconds(tmp_path, 64) == 600
    with (tmp_path / "model.safetensors").open("wb") as file:
        file.truncate(14_000_000_000)
    assert default_call_seconds(tmp_path, 1) == pytest.approx(3400)
    assert default_call_seconds(tmp_path / "model.safetensors", 64) == pytest.approx(179_800)
