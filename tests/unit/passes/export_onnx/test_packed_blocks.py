"""An ``awq`` artifact of a family of ours in ONNX: integers in blocks where the opset has them, else floats that hold them."""

import numpy as np
import onnx
import pytest
import torch

from calibration.sources.arrays import ArrayDataset
from compressor.analysis.tensors import tensor_differences
from compressor.engine.contract import PassContext
from compressor.graphs.files import MODEL
from compressor.models.quantized.packed_checkpoint import read_packed_layers
from compressor.runtimes.formats import open_session
from compressor.runtimes.onnxruntime import cost as onnx_cost
from passes.export_onnx.step import ExportOnnx, ExportOnnxConfig
from tests.support.awq import IMAGES, VIT, family_samples, run_awq_on_family, save_model


def exported(artifact, folder, opset):
    notes, samples = [], family_samples(IMAGES)
    data = ArrayDataset(samples, tuple(samples))
    given = PassContext(
        {},
        {"test": data}.__getitem__,
        folder,
        0,
        1,
        "cpu",
        "ab" * 32,
        lambda *_: None,
        notes.append,
    )
    step, config = ExportOnnx(), ExportOnnxConfig(opset=opset, parity={"batch_size": 4})
    out = folder / f"opset-{opset}"
    out.mkdir(parents=True)
    step.requires(config, artifact, given)
    summary = step.run(config, artifact, out, given).summary
    step.ensures(config, artifact, out, given)
    return out, summary, notes


def artifact_in(folder, **fields):
    parent = save_model(folder / "parent", IMAGES, VIT)
    parent.model, _ = run_awq_on_family(folder, parent, IMAGES, **fields)
    return parent


@pytest.mark.parametrize(
    ("fields", "kind"),
    [
        ({"bits": 4}, onnx.TensorProto.UINT4),
        ({"bits": 4, "symmetric": True, "group_size": 16}, onnx.TensorProto.INT4),
        ({"bits": 8, "group_size": -1}, onnx.TensorProto.UINT8),
    ],
)
def test_blocks_hold_the_integers_and_nothing_else(fields, kind, tmp_path):
    artifact = artifact_in(tmp_path, **fields)
    out, summary, notes = exported(artifact, tmp_path, 21)
    layers = read_packed_layers(artifact.model)
    assert summary["integer_layers"] == len(layers) > 8
    assert (summary["packed_as_floats"], notes) == ([], [])
    graph = onnx.load(out / MODEL).graph
    stored = {one.name: one for one in graph.initializer if ".integers" in one.name}
    assert {one.data_type for one in stored.values()} == {kind}
    alone = [
        name for name in layers if "attention.out" in name or "attention." not in name
    ]  # onnxsim joins the others
    assert len(stored) == len(alone) + VIT.vision_layers
    for name in alone:
        layer, turned = layers[name], f"module.{name}.weight.integers.T" in stored
        values = onnx.numpy_helper.to_array(
            stored[f"module.{name}.weight.integers{'.T' if turned else ''}"]
        )
        below = layer.grid.middle if layer.grid.symmetric else 0
        wanted = layer.integers_OI.numpy().astype(np.int16) - below
        assert np.array_equal((values.T if turned else values).astype(np.int16), wanted)
    pairs = {one.name: one for one in tensor_differences(("packed", artifact.model), ("onnx", out))}
    assert all(pairs[f"{name}.weight"].equal for name in alone)
    joined = stored[
        "+".join(f"vision.layers.0.attention.{one}" for one in ("query", "key", "value"))
        + ".integers.T"
    ]
    assert list(joined.dims) == [VIT.vision_width, 3 * VIT.vision_width]
    parameters = sum(IMAGES.parameters(VIT).values())
    assert (
        0.97 * parameters < onnx_cost.count_parameters(onnx.load(out / MODEL)) <= 1.03 * parameters
    )


def test_without_blocks_weights_are_floats_and_it_is_said(tmp_path):
    artifact = artifact_in(tmp_path, bits=4)
    out, summary, notes = exported(artifact, tmp_path, 20)
    assert summary["integer_layers"] == 0
    assert len(summary["packed_as_floats"]) == len(read_packed_layers(artifact.model))
    assert len(notes) == 1
    assert "stored as floats, which hold them exactly: set `opset: 21`" in notes[0]
    with (
        open_session("onnx", out, threads=1) as ours,
        open_session("packed", artifact.model, threads=1) as torchs,
    ):
        answers = [
            torch.from_numpy(one.run(family_samples(IMAGES))["logits"]) for one in (ours, torchs)
        ]
    assert torch.allclose(*answers, atol=1e-4)


def test_three_bits_have_no_type(tmp_path):
    _, summary, notes = exported(artifact_in(tmp_path, bits=3), tmp_path, 21)
    assert summary["integer_layers"] == 0
    assert "DequantizeLinear reads 4 and 8 bits" in notes[0]
