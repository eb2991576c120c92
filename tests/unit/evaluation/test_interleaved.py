"""Models in processes of their own, timed in interleaved rounds."""

import pytest
from test_measure import SOURCES, onnx_model  # noqa: F401

from compressor.data.contract import SourceContext
from compressor.errors import DataError, ModelError
from compressor.evaluation.interleaved import RoundTimer
from compressor.evaluation.measure import request_of
from compressor.evaluation.records import EvaluateConfig, LatencyConfig
from compressor.runtimes.formats import StoredModel, format_named

LATENCY = EvaluateConfig(latency=LatencyConfig(data="test", warmup=1, repeats=4, threads=1))


def open_timer(format_name, model, tmp_path, **source):
    sources = {**SOURCES, "test": {"source": "tiny", **source}}
    return RoundTimer(
        request_of(
            StoredModel(format_named(format_name), model),
            LATENCY,
            sources,
            SourceContext(tmp_path, cache=tmp_path),
            task="rounds",
        )
    )


def test_two_models_take_turns(tiny_model, onnx_model, tmp_path):  # noqa: F811
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


def test_errors_come_back_as_they_were(onnx_model, tmp_path):  # noqa: F811
    with open_timer("onnx", onnx_model, tmp_path, fail="data") as one, pytest.raises(DataError):
        one.ready()
    with open_timer("onnx", tmp_path, tmp_path) as one, pytest.raises(ModelError):
        one.ready()
