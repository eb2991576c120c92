"""Quantized models in ONNX: integers in the file, integer kernels in ONNX Runtime, and what TensorRT takes."""

import json
import shutil
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
import torch

from compressor.engine.contract import PassContext
from compressor.errors import RequirementError
from compressor.graphs.lint.targets import lint
from compressor.models.capabilities.cuttable_axes import replace_fields
from compressor.models.checkpoint.loading import load_module
from compressor.models.quantized.fake_quantization import IntegerLayer
from compressor.models.quantized.quantization import QUANTIZATION
from compressor.runtimes.formats import open_session
from compressor.runtimes.onnxruntime.integer_kernels import inspect_kernels
from passes.export_onnx.step import ExportOnnx, ExportOnnxConfig
from passes.qat.config import QatConfig
from passes.qat.step import Qat
from tests.support.tiny_models import CLASSIFIER
from tests.support.training import Blobs

NET = {
    ("num_classes",): 2,
    ("image_size",): 16,
    ("vision_activation",): "relu6",
    ("vision_padding",): "tensorflow",
    ("vision_blocks", 2, "squeeze"): False,
    ("vision_blocks", 3, "squeeze"): False,
}


def context(folder):
    return PassContext(
        {}, lambda _: Blobs(), folder, 0, 1, "cpu", "ab" * 32, lambda *_: None, lambda _: None
    )


def run(pass_, config, parent, out):
    out.mkdir(parents=True)
    pass_.requires(config, parent, context(out.parent))
    output = pass_.run(config, parent, out, context(out.parent))
    pass_.ensures(config, parent, out, context(out.parent))
    return output.summary


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """(network, target, bits) to the folders of a quantized model and of its export, and what the export tells; made once."""
    made = {}

    def make(network="cnn", target="onnxruntime", bits=8):
        key = (network, target, bits)
        if key not in made:
            folder = tmp_path_factory.mktemp("-".join(map(str, key)))
            torch.manual_seed(0)
            preset, fields = (
                ("small", NET) if network == "cnn" else ("small-vit", dict(list(NET.items())[:2]))
            )
            config = replace_fields(CLASSIFIER.presets[preset], fields)
            CLASSIFIER.save(CLASSIFIER.build(config), config, folder / "float")
            parent = SimpleNamespace(
                model=folder / "float", manifest=SimpleNamespace(id="ab12", kind="torch")
            )
            fields = {
                "calibration": {"data": "train", "num_samples": 32},
                "target": target,
                "weight_bits": bits,
            }
            run(
                Qat(),
                QatConfig.model_validate_json(json.dumps(fields)),
                parent,
                folder / "quantized",
            )
            parity = {"data": "train", "num_samples": 32, "agreement": 0.9}
            config = ExportOnnxConfig.model_validate_json(json.dumps({"parity": parity}))
            quantized = SimpleNamespace(model=folder / "quantized")
            made[key] = folder, run(ExportOnnx(), config, quantized, folder / "onnx")
        return made[key]

    return make


@pytest.mark.parametrize("network", ["cnn", "vit"])
def test_onnxruntime_computes_every_layer_with_integers(exported, network):
    folder, summary = exported(network)
    layers = [
        one for one in load_module(folder / "quantized").modules() if isinstance(one, IntegerLayer)
    ]
    assert summary["onnxruntime_float"] == []
    assert sum(summary["onnxruntime_integer"].values()) == summary["integer_layers"] == len(layers)
    wanted = (
        {"QLinearConv", "MatMulIntegerToFloat"} if network == "cnn" else {"MatMulIntegerToFloat"}
    )
    assert summary["onnxruntime_integer"].keys() == wanted
    assert summary["complaints"] == []


def test_sums_of_a_residual_are_integers_too_and_nothing_is_rounded_in_between(exported):
    folder, summary = exported()
    # The image, and the mean before the head; back to float before the mean.
    assert summary["onnxruntime_roundings"] == 3
    assert inspect_kernels(folder / "onnx").rounding == 3


@pytest.mark.parametrize("target", ["onnxruntime", "tensorrt"])
@pytest.mark.parametrize("network", ["cnn", "vit"])
def test_the_file_holds_the_integers(exported, network, target):
    folder, _ = exported(network, target)
    model = onnx.load(folder / "onnx" / "model.onnx")
    stored = {one.name: onnx.numpy_helper.to_array(one) for one in model.graph.initializer}
    weights = [one for one in stored.values() if one.dtype == np.int8 and one.ndim > 1]
    layers = [
        one for one in load_module(folder / "quantized").modules() if isinstance(one, IntegerLayer)
    ]
    assert len(weights) == len(layers)
    ours = sorted(
        (one.layer.weight / one.weight_grid.scale.view(-1, *(1,) * (one.layer.weight.ndim - 1)))
        .round()
        .clamp(-128, 127)
        .sum()
        .item()
        for one in layers
    )
    assert sorted(float(one.astype(np.int64).sum()) for one in weights) == pytest.approx(
        ours, abs=1.0
    )
    floats = sum(one.nbytes for one in stored.values() if one.dtype == np.float32)
    assert floats < 0.2 * sum(one.nbytes for one in weights) + 40_000


@pytest.mark.parametrize("network", ["cnn", "vit"])
def test_tensorrt_gets_signed_symmetric_integers_alone(exported, network):
    folder, summary = exported(network, "tensorrt")
    assert summary["complaints"] == []
    model = onnx.load(folder / "onnx" / "model.onnx")
    assert lint(model, "tensorrt") == []
    constants = {one.name: onnx.numpy_helper.to_array(one) for one in model.graph.initializer}
    constants |= {
        one.output[0]: onnx.numpy_helper.to_array(one.attribute[0].t)
        for one in model.graph.node
        if one.op_type == "Constant"
    }
    zeros = [
        constants[one.input[2]]
        for one in model.graph.node
        if one.op_type in {"QuantizeLinear", "DequantizeLinear"}
    ]
    assert zeros
    assert all(zero.dtype == np.int8 and not zero.any() for zero in zeros)


def test_both_targets_say_nearly_what_torch_says(exported):
    image = Blobs().batch(np.arange(32))["image"]
    for target in ("onnxruntime", "tensorrt"):
        folder, _ = exported("cnn", target)
        with (
            open_session("quantized", folder / "quantized", threads=1) as wanted,
            open_session("onnx", folder / "onnx", threads=1) as found,
        ):
            a, b = (one.run({"image": image})["logits"] for one in (wanted, found))
        assert np.abs(a - b).max() < 0.1 * np.abs(a).max()


def test_four_bits_stay_within_their_range(exported):
    folder, _ = exported("cnn", "onnxruntime", 4)
    model = onnx.load(folder / "onnx" / "model.onnx")
    weights = [
        onnx.numpy_helper.to_array(one) for one in model.graph.initializer if len(one.dims) > 1
    ]
    integers = [one for one in weights if one.dtype == np.int8]
    assert {int(one.min()) for one in integers} | {int(one.max()) for one in integers} <= set(
        range(-8, 8)
    )


def test_padding_moves_into_the_convolution(exported):
    folder, _ = exported()
    model = onnx.load(folder / "onnx" / "model.onnx")
    pads = [one for one in model.graph.node if one.op_type == "Pad"]
    makers = {name: one for one in model.graph.node for name in one.output}
    assert not any(makers.get(one.input[0], one).op_type == "Clip" for one in pads)
    padded = [
        attribute.ints
        for one in model.graph.node
        if one.op_type == "Conv"
        for attribute in one.attribute
        if attribute.name == "pads"
    ]
    assert [0, 0, 1, 1] in [list(one) for one in padded]  # TensorFlow's: the odd one at the end


def test_activations_of_four_bits_are_refused(exported, tmp_path):
    folder, _ = exported("cnn", "tensorrt")
    shutil.copytree(folder / "quantized", tmp_path / "quantized")
    tree = json.loads((tmp_path / "quantized" / QUANTIZATION).read_text())
    tree["layers"]["head"]["input"]["bits"] = 4
    (tmp_path / "quantized" / QUANTIZATION).write_text(json.dumps(tree))
    with pytest.raises(RequirementError, match="4-bit activations: head"):
        run(
            ExportOnnx(),
            ExportOnnxConfig(),
            SimpleNamespace(model=tmp_path / "quantized"),
            tmp_path / "onnx",
        )


def test_a_layer_that_is_called_twice_is_stored_once():
    from compressor.graphs import integers
    from compressor.graphs import simplify as graph
    from compressor.models.capabilities.signature import InputSpec
    from compressor.models.quantized.quantization import Grid, QuantizedLayer
    from passes.export_onnx.tracing import onnx_from_torch

    class Twice(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = IntegerLayer(
                torch.nn.Linear(8, 8), QuantizedLayer(weight=Grid(bits=8), input=Grid(bits=8))
            )

        def forward(self, x):
            return {"logits": self.inner(torch.tanh(self.inner(x)))}

    module = Twice().eval()
    for one in (module.inner.input_grid, module.inner.weight_grid):
        one.set_scale(torch.full_like(one.scale, 0.02))
    integers.fix_scales(module)
    x = np.random.default_rng(0).normal(size=(4, 8)).astype(np.float32)
    inputs = [InputSpec("x", "float32", ("batch", 8))]
    model = onnx_from_torch(
        module, inputs, ["logits"], {"x": x}, 20, integers.translations("onnxruntime")
    )
    model, _ = graph.simplified(model)
    integers.laid_out(model, "onnxruntime", 8)
    stored = [
        one
        for one in model.graph.initializers.values()
        if one.const_value.dtype.name == "INT8" and len(one.shape) == 2
    ]
    assert len(stored) == 1
