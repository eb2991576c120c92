"""Rounding to grids, folding of norms, and quantized models in folders."""

import copy
import json

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from compressor.errors import ModelError
from compressor.models.architecture import Architecture
from compressor.models.checkpoint.loading import load_module, save_quantized
from compressor.models.quantized.fake_quantization import (
    FakeQuantizer,
    IntegerLayer,
    fold_norms,
    insert_fake_quantization,
    quantize_input,
    replace_module,
)
from compressor.models.quantized.quantization import (
    QUANTIZATION,
    Grid,
    Quantization,
    QuantizedLayer,
    read_quantization,
)
from tests.support.tiny_models import CLASSIFIER, PHONE, build_model, random_inputs

GRIDS = [
    Grid(bits=bits, nonnegative=nonnegative) for bits in (4, 8) for nonnegative in (False, True)
]
GRIDS += [Grid(bits=8, below=below) for below in (0, 17, 255)]
VALUES = st.lists(st.floats(-50, 50, width=32), min_size=1, max_size=30)


def make_quantizer(grid, scale, channels=None):
    quantizer = FakeQuantizer(grid, channels)
    quantizer.set_scale(torch.as_tensor(scale, dtype=torch.float32))
    return quantizer


@settings(deadline=None, max_examples=60)
@given(VALUES, st.sampled_from(GRIDS), st.floats(1e-3, 3))
def test_rounding_is_idempotent_and_errs_by_at_most_half_a_step(values, grid, scale):
    quantizer = make_quantizer(grid, scale)
    step = quantizer.scale.item()
    x = torch.tensor(values)
    with torch.no_grad():
        y = quantizer(x)
        assert torch.allclose(quantizer(y), y, atol=1e-5 * step, rtol=1e-5)
    steps = y / step
    assert (steps - steps.round()).abs().max() < 1e-3
    assert steps.min() >= grid.lowest - 1e-3
    assert steps.max() <= grid.highest + 1e-3
    inside = (x >= grid.lowest * step) & (x <= grid.highest * step)
    assert ((y - x).abs()[inside] <= 0.5001 * step).all()


@pytest.mark.parametrize("grid", GRIDS)
def test_training_and_inference_round_alike(grid):
    torch.manual_seed(0)
    x = torch.randn(5, 400) * 3
    for quantizer in (make_quantizer(grid, 0.03), make_quantizer(grid, torch.rand(5) + 0.01, 5)):
        with torch.no_grad():
            inference = quantizer(x)
        training = quantizer(x.clone().requires_grad_(True))
        steps = ((inference - training.detach()).abs() / quantizer.scale.max()).round()
        assert (steps > 0).double().mean() < 1e-3  # a tie may fall either way


@pytest.mark.parametrize(
    ("grid", "zero"),
    [(Grid(bits=8), 128), (Grid(bits=8, nonnegative=True), 0), (Grid(bits=8, below=17), 17)],
)
def test_rounding_equals_quantize_and_dequantize_linear_of_onnx(grid, zero):
    zero = np.array(zero, np.uint8)
    nodes = [
        onnx.helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        onnx.helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"]),
    ]
    scale = np.float32(0.037)
    value = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        nodes,
        "g",
        [value("x", onnx.TensorProto.FLOAT, [None])],
        [value("y", onnx.TensorProto.FLOAT, [None])],
        [onnx.numpy_helper.from_array(scale, "s"), onnx.numpy_helper.from_array(zero, "z")],
    )
    model = onnx.helper.make_model(
        graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10
    )
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    x = np.random.default_rng(0).normal(0, 4, 5000).astype(np.float32)
    with torch.no_grad():
        rounded = make_quantizer(grid, scale)(torch.from_numpy(x)).numpy()
    wrong = np.abs(rounded - session.run(None, {"x": x})[0]) > 1e-4
    assert wrong.mean() < 1e-3


def test_gradients_pass_straight_through_and_move_the_scale():
    quantizer = make_quantizer(Grid(bits=8), 0.1)
    quantizer.log2_scale.requires_grad_(True)
    x = torch.tensor([0.23, -0.51, 100.0, -100.0], requires_grad=True)
    quantizer(x).sum().backward()
    assert x.grad.tolist() == [1.0, 1.0, 0.0, 0.0]  # clipped values have no gradient
    inside = (round(2.3) - 2.3) + (round(-5.1) + 5.1)
    by_scale = inside + 127 - 128  # LSQ, equation 3
    assert quantizer.log2_scale.grad.item() == pytest.approx(by_scale * 0.1 * np.log(2), rel=1e-3)


def test_a_scale_can_follow_the_largest_magnitude():
    weights = make_quantizer(Grid(bits=8), [1.0, 1.0], 2)
    activations = make_quantizer(Grid(bits=8), 1.0)
    for quantizer in (weights, activations):
        quantizer.follows = True
        quantizer.train()(torch.tensor([[1.27, -0.5], [0.1, 12.7]]))
        quantizer.eval()(torch.tensor([[1000.0, 0.0], [0.0, 1000.0]]))
    assert weights.scale.tolist() == pytest.approx([0.01, 0.1], rel=1e-3)
    assert activations.scale.item() == pytest.approx(1.0 + 0.01 * (0.1 - 1.0), rel=1e-3)


def test_folding_norms_does_not_change_the_logits():
    model = build_model(CLASSIFIER, CLASSIFIER.presets["small"])
    batch = random_inputs(CLASSIFIER, CLASSIFIER.presets["small"], 3)
    norms = {"vision.stem": "vision.stem_norm", "vision.last": "vision.last_norm"}
    for number in range(4):
        norms |= {
            f"vision.blocks.{number}.{layer}": f"vision.blocks.{number}.{layer}_norm"
            for layer in ("filter", "project")
        }
    folded = copy.deepcopy(model)
    fold_norms(folded, norms)
    with torch.no_grad():
        torch.testing.assert_close(
            folded(**batch)["logits"], model(**batch)["logits"], atol=1e-4, rtol=1e-4
        )
    norms_before, norms_after = (
        [module for module in network.modules() if isinstance(module, torch.nn.BatchNorm2d)]
        for network in (model, folded)
    )
    assert len(norms_after) == len(norms_before) - len(norms)


TINY = PHONE.presets["tiny"]
LAYER = QuantizedLayer(weight=Grid(bits=8), input=Grid(bits=8))
SPEC = Quantization(
    target="onnxruntime",
    layers={
        "speech.down.0": LAYER.model_copy(
            update={"norm": "speech.down_norms.0", "output": Grid(bits=8)}
        ),
        "fusion.from_vision": LAYER.model_copy(update={"input": None}),
    },
    inputs={"speech.residuals.0": Grid(bits=8, nonnegative=True)},
    folded={"speech.down.1": "speech.down_norms.1"},
    kept_float={"vision.stem": "excluded"},
)


def make_quantized():
    torch.manual_seed(1)
    model = insert_fake_quantization(PHONE.build(TINY), SPEC)
    for quantizer in model.modules():
        if isinstance(quantizer, FakeQuantizer):
            quantizer.set_scale(torch.rand_like(quantizer.log2_scale) + 0.01)
    return model.eval()


def test_a_folder_restores_a_quantized_model(tmp_path):
    model = make_quantized()
    save_quantized(model, Architecture(PHONE, TINY), SPEC, tmp_path)
    restored = load_module(tmp_path)
    batch = random_inputs(PHONE, TINY, 3)
    assert read_quantization(tmp_path) == SPEC
    with torch.no_grad():
        assert torch.equal(restored(**batch)["logits"], model(**batch)["logits"])
    assert isinstance(restored.get_submodule("speech.down.0"), IntegerLayer)


def test_a_copy_rounds_with_its_own_scale():
    model = torch.nn.Sequential(torch.nn.Identity())
    quantize_input(model[0], Grid(bits=8)).set_scale(torch.tensor(1.0))
    copied = copy.deepcopy(model)
    copied[0].input_rounding.set_scale(torch.tensor(4.0))
    with torch.no_grad():
        assert model(torch.tensor([1.3])).item() == 1.0
        assert copied(torch.tensor([3.0])).item() == 4.0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda tree: tree["layers"].update(nothing=tree["layers"]["speech.down.0"]),
            "names layers.*nothing",
        ),
        (
            lambda tree: tree["folded"].update({"speech.down.1": "vision.stem"}),
            "names layers.*vision.stem",
        ),
        (lambda tree: tree.update(target="toaster"), "damaged"),
        (lambda tree: tree.pop("layers"), "damaged"),
    ],
)
def test_a_damaged_description_is_refused(tmp_path, change, message):
    save_quantized(make_quantized(), Architecture(PHONE, TINY), SPEC, tmp_path)
    tree = json.loads((tmp_path / QUANTIZATION).read_text())
    change(tree)
    (tmp_path / QUANTIZATION).write_text(json.dumps(tree))
    with pytest.raises(ModelError, match=message):
        load_module(tmp_path)


def test_a_missing_description_is_named(tmp_path):
    save_quantized(make_quantized(), Architecture(PHONE, TINY), SPEC, tmp_path)
    (tmp_path / QUANTIZATION).unlink()
    with pytest.raises(ModelError, match=r"copy quantization\.json too"):
        load_module(tmp_path)


def test_modules_in_lists_can_be_replaced():
    model = torch.nn.Sequential(torch.nn.ModuleList([torch.nn.ReLU()]))
    replace_module(model, "0.0", torch.nn.Identity())
    assert isinstance(model[0][0], torch.nn.Identity)


def test_a_scale_that_follows_covers_both_ends_of_its_grid():
    quantizer = make_quantizer(Grid(bits=8, below=55), [1.0, 1.0], 2)
    quantizer.follows = True
    quantizer.train()(torch.tensor([[2.0, -0.11], [0.2, -5.5]]))
    assert quantizer.scale.tolist() == pytest.approx([0.01, 0.1], rel=1e-3)


def test_scales_of_the_last_axis_apply_to_tensors_of_any_rank():
    quantizer = FakeQuantizer(Grid(bits=8), 2, last=True)
    quantizer.set_scale(torch.tensor([1.0, 0.1]))
    x = torch.tensor([[[1.2, 1.24]], [[-0.4, -0.06]]])
    wanted = torch.tensor([[[1.0, 1.2]], [[0.0, -0.1]]])
    with torch.no_grad():
        assert torch.allclose(quantizer(x), wanted)
    assert torch.allclose(quantizer(x.requires_grad_(True)), wanted)
