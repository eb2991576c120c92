"""The whole pass on a tiny model: what it writes, that it writes it twice, and what it refuses."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnxscript import ir

from compressor.errors import DataError, NumericalError, ParityError, RequirementError
from compressor.graphs import simplify as graph
from passes.export_onnx import pipeline
from passes.export_onnx.step import ExportOnnx, ExportOnnxConfig, ParityConfig

PLUGIN = Path(__file__).parents[2] / "evaluation" / "plugin"


@pytest.fixture
def out(tmp_path):
    folder = tmp_path / "out"
    folder.mkdir()
    return folder


def run(config, parent, out, context):
    one = ExportOnnx()
    one.requires(config, parent, context)
    output = one.run(config, parent, out, context)
    one.ensures(config, parent, out, context)
    return output


def test_writes_a_dynamic_labelled_graph_without_traces_of_the_run(parent, out, context):
    output = run(ExportOnnxConfig(), parent, out, context())
    assert [path.name for path in out.iterdir()] == ["model.onnx"]
    model = onnx.load(out / "model.onnx")
    shapes = {
        one.name: [d.dim_param or d.dim_value for d in one.type.tensor_type.shape.dim]
        for one in model.graph.input
    }
    assert shapes == {"image": ["batch", 3, 8, 8], "words": ["batch", "length"]}
    assert [one.name for one in model.graph.output] == ["logits"]
    assert {one.version for one in model.opset_import if one.domain == ""} == {20}
    labels = {one.key: one.value for one in model.metadata_props}
    assert labels["autoglm_compress.artifact_id"] == "ab" * 32
    assert labels["autoglm_compress.family"] == "tiny"
    assert "torch" in json.loads(labels["autoglm_compress.tools"])
    assert not any(node.metadata_props or node.doc_string for node in model.graph.node)
    assert b"/work/" not in (out / "model.onnx").read_bytes()
    assert b".py" not in (out / "model.onnx").read_bytes()
    parity = output.summary["parity"]
    assert parity.keys() == {"batch_1", "batch_16"}
    assert parity["batch_16"]["samples"] == 40
    assert parity["batch_16"]["max_abs"] < 1e-5
    assert parity["batch_1"]["agreement"] == 1.0
    json.dumps(output.summary)


def test_other_lengths_and_batches_run(parent, out, context):
    from compressor.runtimes.formats import open_session

    run(ExportOnnxConfig(), parent, out, context())
    batch = {"image": np.ones((3, 3, 8, 8), np.uint8), "words": np.ones((3, 11), np.int64)}
    with (
        open_session("torch", parent.model, threads=1) as torch_session,
        open_session("onnx", out, threads=1) as onnx_session,
    ):
        np.testing.assert_allclose(
            onnx_session.run(batch)["logits"], torch_session.run(batch)["logits"], atol=1e-5
        )


def test_dimensions_that_do_not_vary_keep_the_size_of_the_samples(parent, out, context):
    run(ExportOnnxConfig(dynamic=("batch",)), parent, out, context())
    words = next(one for one in onnx.load(out / "model.onnx").graph.input if one.name == "words")
    assert [d.dim_param or d.dim_value for d in words.type.tensor_type.shape.dim] == ["batch", 5]


def test_dimensions_that_are_not_there_are_named(parent, context):
    with pytest.raises(RequirementError, match=r"does not have: frames, time\n.*batch, length"):
        ExportOnnx().requires(
            ExportOnnxConfig(dynamic=("frames", "batch", "time")), parent, context()
        )


def test_external_data_beside_the_graph(parent, out, context):
    output = run(
        ExportOnnxConfig(external_data_threshold_mb=0, simplify=False), parent, out, context()
    )
    assert {path.name for path in out.iterdir()} == {"model.onnx", "model.onnx.data"}
    assert (out / "model.onnx.data").stat().st_size > 0
    assert output.summary["external_data"] is True
    assert output.summary["simplify"] == "not asked for"


_SCRIPT = """
import hashlib, sys
from pathlib import Path
from types import SimpleNamespace
import tiny
from compressor.engine.contract import PassContext
from passes.export_onnx.step import ExportOnnx, ExportOnnxConfig
data = tiny.TinySet(tiny.TinySourceConfig(source="tiny"))
out = Path("out"); out.mkdir()
context = PassContext({}, lambda _: data, out, 0, 1, "cpu", "ab" * 32, lambda *_: None, print)
config = ExportOnnxConfig(external_data_threshold_mb=int(sys.argv[2]))
ExportOnnx().run(config, SimpleNamespace(model=Path(sys.argv[1])), out, context)
"""


def test_the_same_bytes_from_another_process_in_another_folder(parent, out, context, tmp_path):
    folder = tmp_path / "far" / "away"
    folder.mkdir(parents=True)
    environment = {**os.environ, "PYTHONPATH": str(PLUGIN), "PYTHONHASHSEED": "7"}
    subprocess.run(
        [sys.executable, "-c", _SCRIPT, str(parent.model), "0"],
        cwd=folder,
        env=environment,
        check=True,
    )
    run(ExportOnnxConfig(external_data_threshold_mb=0), parent, out, context())
    here, there = (
        {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in one.iterdir()}
        for one in (out, folder / "out")
    )
    assert here == there
    assert here.keys() == {"model.onnx", "model.onnx.data"}


def test_a_wrong_export_fails_parity_and_names_the_worst_sample(parent, out, context, monkeypatch):
    write = graph.write

    def corrupted(model, folder, metadata, threshold):
        weight = max(model.graph.initializers.values(), key=lambda value: value.const_value.nbytes)
        values = weight.const_value.numpy().copy()
        values[0] += 0.5
        weight.const_value = graph.ir.tensor(values, name=weight.name)
        return write(model, folder, metadata, threshold)

    monkeypatch.setattr(pipeline.graph, "write", corrupted)
    with pytest.raises(
        ParityError, match=r"max\|Δ\| .* > 0.001 \(sample \d+, output logits\)"
    ) as caught:
        run(ExportOnnxConfig(), parent, out, context())
    assert "at batch size 1:" in caught.value.what
    assert "at batch size 16:" in caught.value.what


def test_a_product_with_a_bias_stays_two_operators_where_sizes_vary():
    shapes = {"x": ["batch", "length", 4], "y": ["batch", "length", 3]}
    x, y = (
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)
        for name, shape in shapes.items()
    )
    constants = {"w": np.ones((4, 3), np.float32), "b": np.ones(3, np.float32)}
    model = onnx.helper.make_model(
        onnx.helper.make_graph(
            [
                onnx.helper.make_node("MatMul", ["x", "w"], ["z"]),
                onnx.helper.make_node("Add", ["z", "b"], ["y"]),
            ],
            "linear",
            [x],
            [y],
            [onnx.numpy_helper.from_array(array, name) for name, array in constants.items()],
        ),
        opset_imports=[onnx.helper.make_opsetid("", 20)],
        ir_version=10,
    )
    found, _ = graph.simplified(ir.from_proto(model))
    assert [node.op_type for node in found.graph] == ["MatMul", "Add"]


def test_what_onnxsim_makes_larger_is_left_as_it_was(parent, out, context, monkeypatch):
    import onnxsim

    def bloated(proto, **_):
        grown = onnx.ModelProto()
        grown.CopyFrom(proto)
        grown.graph.initializer.append(
            onnx.numpy_helper.from_array(np.zeros(9000, np.float32), "unshared")
        )
        return grown, True

    monkeypatch.setattr(onnxsim, "simplify", bloated)
    notes = []
    output = run(ExportOnnxConfig(), parent, out, context(notes))
    assert notes == [output.summary["simplify"]]
    assert "is larger" in notes[0]
    assert (out / "model.onnx").stat().st_size < 9000


def test_where_onnxsim_cannot_the_pass_says_so(parent, out, context, monkeypatch):
    import onnxsim

    def refusing(proto, **_):
        raise RuntimeError("unsupported operator\nand more")

    monkeypatch.setattr(onnxsim, "simplify", refusing)
    notes = []
    run(ExportOnnxConfig(), parent, out, context(notes))
    assert notes == ["not simplified: onnxsim cannot (unsupported operator)"]


def test_weights_with_nan_are_refused_before_anything_runs(parent, context):
    import safetensors.torch

    file = parent.model / "model.safetensors"
    tensors = safetensors.torch.load_file(file)
    tensors["conv.weight"][0, 0, 0, 0] = float("nan")
    safetensors.torch.save_file(tensors, file)
    with pytest.raises(NumericalError, match=r"conv\.weight: 1 of 216 values"):
        ExportOnnx().requires(ExportOnnxConfig(), parent, context())


def test_an_empty_set_is_told(parent, out, context):
    with pytest.raises(DataError, match="empty"):
        run(ExportOnnxConfig(), parent, out, context(num_samples=0))


def test_one_sample_is_enough(parent, out, context):
    output = run(ExportOnnxConfig(parity=ParityConfig(num_samples=1)), parent, out, context())
    assert output.summary["parity"]["batch_16"]["samples"] == 1


def test_the_estimate_follows_the_weights():
    from compressor.engine.contract import PlanContext
    from compressor.models.facts import ModelFacts

    facts = ModelFacts("tiny", {}, 1_000_000, 5, 4_000_000)
    estimate = ExportOnnx().estimate(ExportOnnxConfig(), facts, PlanContext({}))
    assert estimate.model.parameters == 1_000_000
    assert 4_000_000 < estimate.disk_bytes < 4_200_000
    assert estimate.peak_memory_bytes > 16_000_000
    assert ExportOnnx().estimate(ExportOnnxConfig(), ModelFacts(), PlanContext({})).seconds is None


def test_step_imports_nothing_heavy():
    code = "import sys, passes.export_onnx.step; sys.exit(bool({'torch', 'onnx', 'onnxruntime'} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_an_rms_norm_is_one_operator_in_onnxruntime(tmp_path):
    import onnxruntime
    import torch

    from compressor.models.capabilities.signature import InputSpec
    from passes.export_onnx.tracing import onnx_from_torch

    class Normed(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = torch.nn.RMSNorm(16, eps=1e-5)
            torch.nn.init.uniform_(self.norm.weight)  # one of ones would be dropped

        def forward(self, x):
            return {"logits": self.norm(x)}

    x = np.random.default_rng(0).normal(size=(4, 3, 16)).astype(np.float32)
    module = Normed()
    model = onnx_from_torch(
        module, [InputSpec("x", "float32", ("batch", 3, 16))], ["logits"], {"x": x}, 20
    )
    model, _ = graph.simplified(model)
    graph.divide(model)
    graph.write(model, tmp_path, {}, 1 << 30)
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(
        str(tmp_path / "model.onnx"), options, providers=["CPUExecutionProvider"]
    )
    operators = [node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node]
    assert operators == ["SimplifiedLayerNormalization"]
    wanted = module(torch.from_numpy(x))["logits"].detach().numpy()
    np.testing.assert_allclose(session.run(None, {"x": x})[0], wanted, atol=1e-5)
