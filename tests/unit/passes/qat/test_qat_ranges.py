"""Activation ranges: observed, saved in a table, reused, and refused if they are unusable."""

import json

import pytest
import torch

from calibration.table import TABLE, CalibrationTable
from compressor.errors import NumericalError, RequirementError
from compressor.models.checkpoint.loading import load_module
from passes.qat.ranges import check_table
from tests.support.qat import artifact, qat_config, run_qat, save_variant


def test_a_table_is_reused_and_bound_to_its_model(parent, tmp_path):
    first, _, _ = run_qat(parent, tmp_path / "first", {"bias_correction": False})
    table = artifact(first)
    calibration = {"data": "blank", "table": "first"}  # its samples would give other ranges
    fields = {"calibration": calibration, "bias_correction": False}
    again, _, _ = run_qat(parent, tmp_path / "again", fields, artifacts={"table": table})
    for name in ("model.safetensors", TABLE):
        assert (again / name).read_bytes() == (first / name).read_bytes()
    fields = {"calibration": calibration}
    with pytest.raises(RequirementError, match="belongs to another model"):
        run_qat(artifact(parent.model, "ef56"), tmp_path, fields, artifacts={"table": table})


def test_a_table_holds_the_ranges_of_the_samples(parent, tmp_path):
    out, _, _ = run_qat(parent, tmp_path)
    table = json.loads((out / TABLE).read_text())
    assert table["model"] == "ab12"
    assert table["num_samples"] == 32
    stem = table["tensors"]["vision.stem:input"]
    assert stem["values"] == 32 * 3 * 16 * 16
    assert -1 <= stem["minimum"] < stem["maximum"] <= 1
    assert table["tensors"]["vision.blocks.0.filter:input"]["minimum"] == 0.0


def test_ranges_without_negative_values_have_a_bound_of_their_own(parent, tmp_path):
    out, _, _ = run_qat(parent, tmp_path)
    tensors = json.loads((out / TABLE).read_text())["tensors"]
    assert tensors["vision.stem:input"]["bound_from_zero"] is None
    range_ = tensors["vision.blocks.0.filter:input"]
    assert range_["bound_from_zero"] >= range_["bound"]  # a grid twice as fine needs less clipping
    layer = load_module(out).get_submodule("vision.blocks.0.filter")
    assert layer.input_grid.scale.item() == pytest.approx(range_["bound_from_zero"] / 255, rel=1e-5)


def test_constant_inputs_are_an_error(parent, tmp_path):
    with pytest.raises(RequirementError, match=r"vision\.stem: its input is always -1"):
        run_qat(parent, tmp_path, {"calibration": {"data": "blank"}})


def test_a_layer_that_no_sample_reaches_is_an_error():
    table = CalibrationTable(
        model="a", observer="mse", bits=8, num_samples=1, samples_sha256="0" * 64, tensors={}
    )
    with pytest.raises(RequirementError, match="head: no sample reaches it"):
        check_table(table, ["head"], qat_config(), torch.nn.Module())


def test_activations_that_are_not_finite_are_an_error(parent, tmp_path):
    module = load_module(parent.model)
    with torch.no_grad():
        module.get_submodule("vision.blocks.2.filter").weight.mul_(1e38).mul_(100.0)
        module.get_submodule("vision.blocks.2.filter").weight.clamp_(-3e38, 3e38)
    variant = save_variant(module, parent, tmp_path / "variant")
    with pytest.raises(
        NumericalError, match=r"activations are not finite:\n    vision\.blocks\.2\."
    ):
        run_qat(variant, tmp_path)
