"""Export of quantized models: integers in the file, integer kernels, and graphs for TensorRT."""

import json
import shutil
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
import torch

from compressor.engine.contract import PassContext
from compressor.errors import ParityError, RequirementError
from compressor.graphs.lint.targets import lint
from compressor.graphs.qdq import freeze_scales, rounding_translations, store_integer_weights
from compressor.graphs.simplify import simplify
from compressor.models.capabilities.cuttable_axes import replace_fields
from compressor.models.capabilities.signature import InputSpec
from compressor.models.checkpoint.loading import load_module
from compressor.models.quantized.fake_quantization import IntegerLayer
from compressor.models.quantized.quantization import QUANTIZATION, Grid, QuantizedLayer
from compressor.runtimes.formats import open_session
from compressor.runtimes.onnxruntime.integer_kernels import inspect_kernels
from passes.export_onnx.step import ExportOnnx
from passes.export_onnx.tracing import onnx_from_torch
from passes.qat.step import Qat
from tests.support.tiny_models import CLASSIFIER
from tests.support.training import Blobs

SIZES = {("num_classes",): 2, ("image_size",): 16}
FIELDS = {
    "cnn": {
        **SIZES,
        ("vision_activation",): "relu6",
        ("vision_padding",): "tensorflow",
        ("vision_blocks", 2, "squeeze"): False,
        ("vision_blocks", 3, "squeeze"): False,
    },
    "vit": SIZES,
}
PRESETS = {"cnn": "small", "vit": "small-vit"}
NETWORKS = pytest.mark.parametrize("network", PRESETS)


def run(step, fields, parent, out):
    out.mkdir(parents=True)
    context = PassContext(
        artifacts={},
        data=lambda _: Blobs(),
        work=out.parent,
        seed=0,
        threads=1,
        device="cpu",
        artifact_id="ab" * 32,
        progress=lambda *_: None,
        note=lambda _: None,
    )
    config = step.Config.model_validate_json(json.dumps(fields))
    step.requires(config, parent, context)
    output = step.run(config, parent, out, context)
    step.ensures(config, parent, out, context)
    return output.summary


def artifact(folder):
    return SimpleNamespace(model=folder, manifest=SimpleNamespace(id="ab12", format="torch"))


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """Return a function that quantizes and exports a network, once for each set of arguments.

    It returns the folder with ``quantized`` and ``onnx``, and the summary of the export.
    """
    exports = {}

    def export(network="cnn", target="onnxruntime", bits=8):
        key = (network, target, bits)
        if key not in exports:
            folder = tmp_path_factory.mktemp("-".join(map(str, key)))
            torch.manual_seed(0)
            config = replace_fields(CLASSIFIER.presets[PRESETS[network]], FIELDS[network])
            CLASSIFIER.save(CLASSIFIER.build(config), config, folder / "float")
            calibration = {"data": "train", "num_samples": 32}
            fields = {"calibration": calibration, "target": target, "weight_bits": bits}
            run(Qat(), fields, artifact(folder / "float"), folder / "quantized")
            parity = {"data": "train", "num_samples": 32, "agreement": 0.9}
            quantized = artifact(folder / "quantized")
            summary = run(ExportOnnx(), {"parity": parity}, quantized, folder / "onnx")
            exports[key] = folder, summary
        return exports[key]

    return export


def integer_layers(folder):
    modules = load_module(folder / "quantized").modules()
    return [module for module in modules if isinstance(module, IntegerLayer)]


def stored_arrays(folder):
    graph = onnx.load(folder / "onnx" / "model.onnx").graph
    return {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}


@NETWORKS
def test_onnxruntime_computes_every_layer_with_integers(exported, network):
    folder, summary = exported(network)
    assert summary["onnxruntime_float"] == []
    count = len(integer_layers(folder))
    assert sum(summary["onnxruntime_integer"].values()) == summary["integer_layers"] == count
    convolutions = {"QLinearConv"} if network == "cnn" else set()
    assert summary["onnxruntime_integer"].keys() == convolutions | {"MatMulIntegerToFloat"}
    assert summary["complaints"] == []


def test_residual_sums_are_integers_and_no_value_is_rounded_in_between(exported):
    folder, summary = exported()
    # The image, and the mean before the head; back to float before the mean.
    assert summary["onnxruntime_roundings"] == 3
    assert inspect_kernels(folder / "onnx").rounding == 3


def test_limits_that_only_the_rounding_of_kernels_exceeds_are_explained(exported, tmp_path):
    folder, _ = exported("vit")
    fields = {"parity": {"data": "train", "num_samples": 32, "cosine": 1.0}}
    with pytest.raises(ParityError, match=r"as written, .*\n?.*computes what torch does") as caught:
        run(ExportOnnx(), fields, artifact(folder / "quantized"), tmp_path / "onnx")
    assert "fine_tuning" in caught.value.remedy
    assert "opset" not in caught.value.remedy


@pytest.mark.parametrize("target", ["onnxruntime", "tensorrt"])
@NETWORKS
def test_the_file_holds_the_integers_of_the_weights(exported, network, target):
    folder, _ = exported(network, target)
    stored = stored_arrays(folder)
    weights = [array for array in stored.values() if array.dtype == np.int8 and array.ndim > 1]
    layers = integer_layers(folder)
    assert len(weights) == len(layers)
    expected_sums = []
    for module in layers:
        weight = module.layer.weight
        scales = module.weight_grid.scale.view(-1, *(1,) * (weight.ndim - 1))
        expected_sums.append((weight / scales).round().clamp(-128, 127).sum().item())
    sums = sorted(float(weight.astype(np.int64).sum()) for weight in weights)
    assert sums == pytest.approx(sorted(expected_sums), abs=1.0)
    float_bytes = sum(array.nbytes for array in stored.values() if array.dtype == np.float32)
    assert float_bytes < 0.2 * sum(weight.nbytes for weight in weights) + 40_000


@NETWORKS
def test_graphs_for_tensorrt_have_signed_symmetric_integers_only(exported, network):
    folder, summary = exported(network, "tensorrt")
    assert summary["complaints"] == []
    model = onnx.load(folder / "onnx" / "model.onnx")
    assert lint(model, "tensorrt") == []
    constants = stored_arrays(folder) | {
        node.output[0]: onnx.numpy_helper.to_array(node.attribute[0].t)
        for node in model.graph.node
        if node.op_type == "Constant"
    }
    zero_points = [
        constants[node.input[2]]
        for node in model.graph.node
        if node.op_type in {"QuantizeLinear", "DequantizeLinear"}
    ]
    assert zero_points
    assert all(zero.dtype == np.int8 and not zero.any() for zero in zero_points)


def test_graphs_for_both_targets_compute_nearly_what_torch_does(exported):
    image = Blobs().batch(np.arange(32))["image"]
    for target in ("onnxruntime", "tensorrt"):
        folder, _ = exported("cnn", target)
        with (
            open_session("quantized", folder / "quantized", threads=1) as reference,
            open_session("onnx", folder / "onnx", threads=1) as session,
        ):
            expected, actual = (
                model.run({"image": image})["logits"] for model in (reference, session)
            )
        assert np.abs(expected - actual).max() < 0.1 * np.abs(expected).max()


def test_integers_of_four_bits_stay_within_their_range(exported):
    folder, _ = exported("cnn", "onnxruntime", 4)
    weights = [
        array
        for array in stored_arrays(folder).values()
        if array.dtype == np.int8 and array.ndim > 1
    ]
    assert weights
    assert min(weight.min() for weight in weights) >= -8
    assert max(weight.max() for weight in weights) <= 7


def test_padding_moves_into_the_convolution(exported):
    folder, _ = exported()
    nodes = onnx.load(folder / "onnx" / "model.onnx").graph.node
    producers = {name: node for node in nodes for name in node.output}
    pads = [node for node in nodes if node.op_type == "Pad"]
    assert not any(producers.get(node.input[0], node).op_type == "Clip" for node in pads)
    paddings = [
        list(attribute.ints)
        for node in nodes
        if node.op_type == "Conv"
        for attribute in node.attribute
        if attribute.name == "pads"
    ]
    assert [0, 0, 1, 1] in paddings  # TensorFlow pads the odd pixel at the end


def test_activations_of_four_bits_are_refused(exported, tmp_path):
    folder, _ = exported("cnn", "tensorrt")
    shutil.copytree(folder / "quantized", tmp_path / "quantized")
    file = tmp_path / "quantized" / QUANTIZATION
    tree = json.loads(file.read_text())
    tree["layers"]["head"]["input"]["bits"] = 4
    file.write_text(json.dumps(tree))
    with pytest.raises(RequirementError, match="4-bit activations: head"):
        run(ExportOnnx(), {}, artifact(tmp_path / "quantized"), tmp_path / "onnx")


class CalledTwice(torch.nn.Module):
    """A quantized layer that is called twice."""

    def __init__(self):
        super().__init__()
        quantized = QuantizedLayer(weight=Grid(bits=8), input=Grid(bits=8))
        self.inner = IntegerLayer(torch.nn.Linear(8, 8), quantized)

    def forward(self, x):
        return {"logits": self.inner(torch.tanh(self.inner(x)))}


def test_a_layer_that_is_called_twice_is_stored_once():
    module = CalledTwice().eval()
    for grid in (module.inner.input_grid, module.inner.weight_grid):
        grid.set_scale(torch.full_like(grid.scale, 0.02))
    freeze_scales(module)
    x = np.random.default_rng(0).normal(size=(4, 8)).astype(np.float32)
    inputs = [InputSpec("x", "float32", ("batch", 8))]
    translations = rounding_translations("onnxruntime")
    traced = onnx_from_torch(module, inputs, ["logits"], {"x": x}, 20, translations)
    model = simplify(traced).model
    store_integer_weights(model, "onnxruntime", 8)
    stored = [
        value
        for value in model.graph.initializers.values()
        if value.const_value.dtype.name == "INT8" and len(value.shape) == 2
    ]
    assert len(stored) == 1
