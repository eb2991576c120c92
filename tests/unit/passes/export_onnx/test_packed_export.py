"""Export of packed models that are traced: blocks of integers, or floats that equal them."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from calibration.sources.arrays import ArrayDataset
from compressor.analysis.tensors import compare_tensors
from compressor.engine.contract import PassContext
from compressor.graphs.files import MODEL
from compressor.models.quantized.packed_checkpoint import read_packed_layers
from compressor.runtimes.formats import open_session, recognize
from compressor.runtimes.onnxruntime.cost import count_parameters
from passes.export_onnx.config import ExportOnnxConfig, ParityConfig
from passes.export_onnx.packed import store_packed
from passes.export_onnx.step import ExportOnnx
from tests.support.awq import IMAGES, VIT, family_samples, run_awq_on_family, save_model
from tests.support.encoder_classes import CLASSES
from tests.support.packed_mixtures import write_packed


def packed_artifact(folder, **fields):
    artifact = save_model(folder / "parent", IMAGES, VIT)
    artifact.model, _ = run_awq_on_family(folder, artifact, IMAGES, **fields)
    return artifact


def export(artifact, folder, opset):
    """Return the folder of the graph, the summary and the notes."""
    notes, samples = [], family_samples(IMAGES)
    context = PassContext(
        artifacts={},
        data=lambda _: ArrayDataset(samples, tuple(samples)),
        work=folder,
        seed=0,
        threads=1,
        device="cpu",
        artifact_id="ab" * 32,
        progress=lambda *_: None,
        note=notes.append,
    )
    step = ExportOnnx()
    config = ExportOnnxConfig(opset=opset, parity=ParityConfig(batch_size=4))
    out = folder / f"opset-{opset}"
    out.mkdir(parents=True)
    step.requires(config, artifact, context)
    summary = step.run(config, artifact, out, context).summary
    step.ensures(config, artifact, out, context)
    return out, summary, notes


@pytest.mark.parametrize(
    ("fields", "dtype"),
    [
        ({"bits": 4}, onnx.TensorProto.UINT4),
        ({"bits": 4, "symmetric": True, "group_size": 16}, onnx.TensorProto.INT4),
        ({"bits": 8, "group_size": -1}, onnx.TensorProto.UINT8),
    ],
)
def test_blocks_hold_the_integers_of_the_packed_layers(fields, dtype, tmp_path):
    artifact = packed_artifact(tmp_path, **fields)
    out, summary, notes = export(artifact, tmp_path, 21)
    layers = read_packed_layers(artifact.model)
    assert summary["integer_layers"] == len(layers) > 8
    assert (summary["packed_as_floats"], notes) == ([], [])
    model = onnx.load(out / MODEL)
    stored = {
        tensor.name: tensor for tensor in model.graph.initializer if ".integers" in tensor.name
    }
    assert {tensor.data_type for tensor in stored.values()} == {dtype}
    # onnxsim joins query, key and value.
    single = [name for name in layers if "attention.out" in name or "attention." not in name]
    assert len(stored) == len(single) + VIT.vision_layers
    for name in single:
        assert np.array_equal(stored_integers(stored, name), layer_integers(layers[name]))
    differences = {
        tensor.name: tensor for tensor in compare_tensors(recognize(artifact.model), recognize(out))
    }
    assert all(differences[f"{name}.weight"].equal for name in single)
    attention = (f"vision.layers.0.attention.{part}" for part in ("query", "key", "value"))
    joined = stored["+".join(attention) + ".integers.T"]
    assert list(joined.dims) == [VIT.vision_width, 3 * VIT.vision_width]
    parameters = sum(IMAGES.parameters(VIT).values())
    assert 0.97 * parameters < count_parameters(model) <= 1.03 * parameters


def stored_integers(stored, layer):
    """Return the integers of a layer's initializer, [outputs, inputs]."""
    name = f"module.{layer}.weight.integers"
    if f"{name}.T" in stored:
        return onnx.numpy_helper.to_array(stored[f"{name}.T"]).T.astype(np.int16)
    return onnx.numpy_helper.to_array(stored[name]).astype(np.int16)


def layer_integers(layer):
    """Return the integers of a packed layer; those of a symmetric grid are signed."""
    zero_point = layer.grid.middle if layer.grid.symmetric else 0
    return layer.integers_OI.numpy().astype(np.int16) - zero_point


def test_before_opset_21_weights_are_floats_with_a_note(tmp_path):
    artifact = packed_artifact(tmp_path, bits=4)
    out, summary, notes = export(artifact, tmp_path, 20)
    assert summary["integer_layers"] == 0
    assert len(summary["packed_as_floats"]) == len(read_packed_layers(artifact.model))
    [note] = notes
    assert "stored as floats, which hold them exactly: set `opset: 21`" in note
    with (
        open_session("onnx", out, threads=1) as exported,
        open_session("packed", artifact.model, threads=1) as reference,
    ):
        actual, expected = (
            session.run(family_samples(IMAGES))["logits"] for session in (exported, reference)
        )
    np.testing.assert_allclose(actual, expected, atol=1e-4)


def test_weights_of_three_bits_are_floats_since_onnx_has_no_such_type(tmp_path):
    _, summary, notes = export(packed_artifact(tmp_path, bits=3), tmp_path, 21)
    assert summary["integer_layers"] == 0
    assert "DequantizeLinear reads 4 and 8 bits" in notes[0]


def products(layers):
    """Return a graph that multiplies by the weights of layers, one after another."""
    weights = {name: layer.dequantize().numpy() for name, layer in layers.items()}
    helper = onnx.helper
    nodes = [helper.make_node("MatMul", [f"x.{name}", name], [f"y.{name}"]) for name in weights]
    ends = [
        [helper.make_tensor_value_info(f"{end}.{name}", 1, [None, None]) for name in weights]
        for end in "xy"
    ]
    constants = [onnx.numpy_helper.from_array(weight.T, name) for name, weight in weights.items()]
    graph = helper.make_graph(nodes, "products", *ends, constants)
    return ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)]))


def test_layers_are_counted_over_all_graphs_of_a_model(tmp_path):
    write_packed(CLASSES["bart"].build(), tmp_path)
    layers, notes = read_packed_layers(tmp_path), []
    names = sorted(layers)
    encoder, decoder = ({name: layers[name] for name in part} for part in (names[:5], names[5:]))
    summary = store_packed([products(encoder), products(decoder)], tmp_path, notes.append)
    assert summary == {"integer_layers": len(names), "packed_as_floats": []} and not notes
    summary = store_packed([products(encoder)], tmp_path, notes.append)
    assert summary["packed_as_floats"] == names[5:] and len(notes) == 1
