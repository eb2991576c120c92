"""Tests of interleaved rounds: models open in processes of their own."""

import pytest

from compressor.data.contract import SourceContext
from compressor.errors import DataError, ModelError
from compressor.evaluation.interleaved import RoundTimer
from compressor.evaluation.measure import make_request
from compressor.evaluation.records import EvaluateConfig, LatencyConfig
from compressor.runtimes.formats import StoredModel, format_named

LATENCY = EvaluateConfig(latency=LatencyConfig(data="test", warmup=1, repeats=4, threads=1))


def open_timer(format_name, model, tmp_path, **source):
    sources = {"test": {"source": "tiny", **source}}
    return RoundTimer(
        make_request(
            StoredModel(format_named(format_name), model),
            LATENCY,
            sources,
            SourceContext(tmp_path, cache=tmp_path),
            task="rounds",
        )
    )


def test_two_open_models_are_timed_alternately(tiny_model, onnx_model, tmp_path):
    with (
        open_timer("torch", tiny_model, tmp_path) as torch,
        open_timer("onnx", onnx_model, tmp_path) as onnx,
    ):
        torch.ready()
        onnx.ready()
        rounds = [
            (torch.measure_round("latency_p50_ms"), onnx.measure_round("latency_p50_ms"))
            for _ in range(2)
        ]
        assert all(slow > fast > 0 for slow, fast in rounds)
        assert onnx.measure_round("throughput") > 0


def test_errors_of_the_process_keep_their_class(onnx_model, tmp_path):
    failing = open_timer("onnx", onnx_model, tmp_path, fail="data")
    with failing as timer, pytest.raises(DataError):
        timer.ready()
    with open_timer("onnx", tmp_path, tmp_path) as timer, pytest.raises(ModelError):
        timer.ready()
