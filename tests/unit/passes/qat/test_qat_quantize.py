"""The whole pass on a small CNN."""

import pytest
import torch

from compressor.models.checkpoint.loading import load_module
from compressor.models.quantized.fake_quantization import IntegerLayer
from compressor.models.quantized.quantization import read_quantization
from tests.support.qat import CALIBRATION, accuracy, run_qat, save_variant


@pytest.mark.parametrize(
    ("observer", "target"),
    [
        ("min-max", "onnxruntime"),
        ("moving-average", "onnxruntime"),
        ("percentile", "onnxruntime"),
        ("entropy", "onnxruntime"),
        ("mse", "onnxruntime"),
        ("mse", "tensorrt"),
    ],
)
def test_every_observer_keeps_the_accuracy(parent, tmp_path, observer, target):
    calibration = CALIBRATION | {"observer": observer}
    out, summary, _ = run_qat(parent, tmp_path, {"calibration": calibration, "target": target})
    assert accuracy(out) >= accuracy(parent.model) - 0.05
    layers = [layer for layer in load_module(out).modules() if isinstance(layer, IntegerLayer)]
    assert summary["integer_layers"] == len(layers) == 19
    assert summary["folded_norms"] == 14
    with_output_grid = [layer for layer in layers if layer.output_grid is not None]
    signs = {layer.input_grid.grid.nonnegative for layer in layers if layer.input_grid is not None}
    if target == "tensorrt":
        assert with_output_grid == []
        assert signs == {False}
    else:
        assert with_output_grid != []
        assert True in signs


def test_weight_scales_cover_each_output_channel(parent, tmp_path):
    out, _, _ = run_qat(parent, tmp_path, {"weight_observer": "min-max"})
    for layer in load_module(out).modules():
        if isinstance(layer, IntegerLayer):
            largest = layer.layer.weight.detach().flatten(1).abs().amax(dim=1)
            torch.testing.assert_close(layer.weight_grid.scale, largest / 127, rtol=1e-4, atol=1e-9)


def test_channels_of_denormal_weights_get_a_scale(parent, tmp_path):
    module = load_module(parent.model)
    with torch.no_grad():
        module.head.weight[0] = 1e-44
    variant = save_variant(module, parent, tmp_path / "variant")
    out, _, _ = run_qat(variant, tmp_path)
    assert load_module(out).get_submodule("head").weight_grid.is_sound()


def test_the_names_before_the_renaming_still_work(parent, tmp_path):
    fields = {"weight_bits": 4, "bias_correction": False}
    new, _, _ = run_qat(parent, tmp_path / "new", fields | {"ignore": ["head"]})
    old, _, _ = run_qat(parent, tmp_path / "old", fields | {"exclude": ["head"]})
    assert read_quantization(old).kept_float == {"head": "excluded"}
    for file in ("model.safetensors", "quantization.json"):
        assert (old / file).read_bytes() == (new / file).read_bytes()
