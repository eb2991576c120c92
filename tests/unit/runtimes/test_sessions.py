"""Sessions of torch and ONNX Runtime, and the check of batches against inputs."""

import subprocess
import sys

import numpy as np
import onnx
import pytest

from compressor.config.discovery import FAMILIES, load
from compressor.errors import DataError, ModelError, UsageError
from compressor.models.capabilities.signature import InputSpec
from compressor.runtimes.formats import open_session
from compressor.runtimes.session import input_problems, match_inputs, sample_specs


def test_onnx_runs_and_ignores_arrays_without_an_input(onnx_folder):
    with open_session("onnx", onnx_folder(), threads=1) as session:
        assert session.runtime.startswith("onnxruntime ")
        assert (session.input_names, session.output_names) == (("x",), ("logits",))
        x = np.ones((4, 3), np.float64)
        np.testing.assert_array_equal(session.run({"x": x, "label": x})["logits"], [[6, 9]] * 4)


def test_torch_runs_and_returns_only_the_outputs_of_the_family(tmp_path):
    family = load(FAMILIES, "autoglm-phone")
    config = family.presets["tiny"]
    family.save(family.build(config), config, tmp_path)
    rows = {
        spec.name: np.zeros(
            (2, *(size if isinstance(size, int) else 16 for size in spec.shape[1:])), spec.dtype
        )
        for spec in family.signature(config).inputs
    }
    for array in rows.values():
        array.flags.writeable = False
    with open_session("torch", tmp_path, threads=1) as session:
        assert session.runtime.startswith("torch ")
        outputs = session.run(rows)
    assert {name: value.shape for name, value in outputs.items()} == {"logits": (2, 10)}


def test_a_format_without_a_runtime_is_refused_by_name(tmp_path):
    with pytest.raises(UsageError, match="format 'delta': no runtime executes it"):
        open_session("delta", tmp_path, threads=1)


SPECS = (InputSpec("x", "float32", ("batch", 3)), InputSpec("n", "int64", ("batch", "length")))


def test_every_array_that_does_not_fit_is_named():
    with pytest.raises(DataError) as caught:
        match_inputs({"x": np.zeros((2, 4)), "y": np.zeros(1)}, SPECS)
    assert "x: shape [2, 4], expected [batch, 3]" in caught.value.what
    assert "n: missing; the data has x, y" in caught.value.what


def test_a_named_dimension_has_one_size():
    with pytest.raises(DataError, match="batch is 3, but 2 in x"):
        match_inputs({"x": np.zeros((2, 3)), "n": np.zeros((3, 1), np.int64)}, SPECS)


@pytest.mark.parametrize(
    ("values", "fits"),
    [
        (np.array([[1, 2]], np.int32), True),
        (np.array([[1.0, 2.0]]), True),
        (np.array([[1.5, 2.0]]), False),
        (np.array([[np.nan, 2.0]]), False),
        (np.array([[True, False]]), True),
        (np.array([[2**63, 0]], np.uint64), False),
    ],
)
def test_arrays_are_cast_only_where_the_cast_is_exact(values, fits):
    feeds = {"x": np.zeros((1, 3), np.float16), "n": values}
    if fits:
        assert {name: array.dtype for name, array in match_inputs(feeds, SPECS).items()} == {
            "x": "float32",
            "n": "int64",
        }
    else:
        with pytest.raises(DataError, match="do not fit into int64"):
            match_inputs(feeds, SPECS)


def test_float64_that_float32_cannot_hold_is_refused():
    with pytest.raises(DataError, match="x: its values are float64 and do not fit into float32"):
        match_inputs({"x": np.full((1, 3), 0.1), "n": np.zeros((1, 1), np.int64)}, SPECS)


def test_an_invalid_graph_is_refused_with_the_runtimes_reason(onnx_folder):
    folder = onnx_folder()
    model = onnx.load(folder / "model.onnx")
    model.graph.node[0].op_type = "NoSuchOperator"
    onnx.save(model, folder / "model.onnx")
    with pytest.raises(ModelError, match=r"ONNX Runtime cannot open .*NoSuchOperator"):
        open_session("onnx", folder, threads=1)


def test_a_device_without_a_provider_is_refused(onnx_folder):
    with pytest.raises(UsageError, match="does not support the device 'tpu'"):
        open_session("onnx", onnx_folder(), threads=1, device="tpu")


def test_sessions_of_onnx_never_import_torch():
    code = "import sys, compressor.runtimes.onnxruntime.session; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("value", "message"),
    [(7, "has the value 7; the model takes values below 7"), (-1, "takes values from 0 to 6")],
)
def test_ids_outside_the_table_are_refused(value, message):
    specs = (InputSpec("ids", "int64", ("batch", "tokens"), below=7),)
    assert match_inputs({"ids": np.array([[0, 6]])}, specs)
    with pytest.raises(DataError, match=message):
        match_inputs({"ids": np.array([[0, value]])}, specs)


def test_a_sample_fits_a_model_that_fixes_the_samples_of_a_call():
    specs = (InputSpec("x", "float32", (4, 3)), InputSpec("size", "float32", (2,)))
    sample = {"x": np.ones((1, 3), np.float32), "size": np.ones((1, 2), np.float32)}
    assert input_problems(sample, specs)
    assert not input_problems(sample, sample_specs(sample, specs))
    wrong = sample | {"x": np.ones((1, 5), np.float32)}
    assert input_problems(wrong, sample_specs(wrong, specs))
