"""One call of a foreign graph ends in time: calibration, comparisons, trials of sizes."""

import os
import threading
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from compressor.errors import CallTimeoutError
from compressor.graphs.files import load_typed_model
from compressor.runtimes.call_limit import limit_calls, limited_call
from compressor.runtimes.formats import format_named, open_session
from compressor.runtimes.onnxruntime.observation import observe_values
from compressor.runtimes.working_inputs import SizeTrial, working_inputs
from tests.support.forked import run_forked

X = {"x": np.ones((2, 4), np.float32)}
PIPELINE = """\
version: 1
name: endless
threads: 1
model: {path: model, measure: false}
data: {d: {source: arrays, path: d.npz}}
evaluate: {call_timeout: 0.5}
passes:
"""


@pytest.fixture
def endless(tmp_path):
    """Return a folder with a graph that multiplies, and then repeats a sine 2**60 times."""
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["on"]), helper.make_node("Sin", ["a"], ["b"])],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("a", TensorProto.FLOAT, None),
        ],
        [
            helper.make_tensor_value_info("on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("b", TensorProto.FLOAT, None),
        ],
    )
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "w"], ["m"]),
            helper.make_node("Loop", ["trips", "always", "m"], ["y"], body=body),
        ],
        "endless",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", "n"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 4])],
        [
            helper.make_tensor("w", TensorProto.FLOAT, [4, 4], np.eye(4).ravel()),
            helper.make_tensor("trips", TensorProto.INT64, [], [2**60]),
            helper.make_tensor("always", TensorProto.BOOL, [], [True]),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    (tmp_path / "model").mkdir()
    onnx.save(model, tmp_path / "model" / "model.onnx")
    return tmp_path / "model"


def test_a_session_stops_and_names_its_graph(endless):
    start = time.monotonic()
    with (
        open_session("onnx", endless, threads=1) as session,
        limit_calls(Path("parent"), 0.2),
        pytest.raises(CallTimeoutError) as caught,
    ):
        session.run(X)
    assert str(endless / "model.onnx") in caught.value.what
    assert "`evaluate.call_timeout`" in caught.value.remedy
    assert time.monotonic() - start < 30


def test_observation_stops_and_names_the_limited_model(endless):
    graph = load_typed_model(endless)
    with limit_calls(endless, 0.2), pytest.raises(CallTimeoutError, match=str(endless)):
        observe_values(graph, ["m", "y"], [X], lambda *_: None, threads=1)


def test_trials_of_sizes_end_at_the_first_call_without_end(endless, monkeypatch):
    monkeypatch.setattr("compressor.runtimes.working_inputs._TRIAL_SECONDS", 0.2)
    trial = SizeTrial(format_named("onnx"), endless, 1)
    assert trial(16) is False, "it has other widths"
    assert trial(4) is False
    monkeypatch.setattr("compressor.runtimes.working_inputs._TRIAL_SECONDS", 1000.0)
    assert trial(32) is False, "it is not tried again"
    with (
        open_session("onnx", endless, threads=1) as session,
        limit_calls(endless, 0.2),
        pytest.raises(CallTimeoutError),
    ):
        working_inputs(session)


@pytest.mark.parametrize(
    "step",
    [
        "{type: optimize-onnx, precision: int8, calibration: {data: d, num_samples: 4}}",
        "{type: export-ort, parity: {data: d}}",
        "{type: export-mnn, parity: {data: d}}",
    ],
)
def test_a_pass_on_an_endless_graph_is_one_error(endless, step):
    home = endless.parent
    np.savez(home / "d.npz", x=np.ones((4, 4), np.float32))
    (home / "pipeline.yaml").write_text(f"{PIPELINE}  - {step}\n")
    outcome = run_forked("run", home / "pipeline.yaml", "-o", home / "store", timeout_s=120)
    assert outcome.code == 1, outcome.printed
    assert outcome.printed.count("error: ") == 1
    assert "model.onnx: one call of the model has not ended after 0.5 s" in outcome.printed


def test_a_library_that_cannot_stop_ends_the_command():
    read, write = os.pipe()
    if (child := os.fork()) == 0:
        os.dup2(write, 2)
        with limit_calls(Path("model.mnn"), 0.05), limited_call({}):
            time.sleep(60)
        os._exit(0)
    os.close(write)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 1
    printed = os.read(read, 4096).decode()
    assert printed.startswith("error: model.mnn: one call of the model has not ended")
    os.close(read)


def test_calls_that_end_leave_no_thread_behind():
    before = threading.active_count()
    with limit_calls(Path("model"), 60):
        for _ in range(20):
            with limited_call(X):
                pass
    deadline = time.monotonic() + 10
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threading.active_count() == before


def test_an_error_of_a_call_in_time_is_its_own():
    with (
        limit_calls(Path("model"), 60),
        pytest.raises(ValueError, match="its own"),
        limited_call(X),
    ):
        raise ValueError("its own")
