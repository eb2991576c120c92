"""Real engines, built by tensorrt-rtx without a GPU."""

import json
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from onnx import TensorProto
from pydantic import ValidationError

from compressor.artifacts.fingerprint import digest_file
from compressor.artifacts.store import Store
from compressor.data.contract import SourceContext
from compressor.engine.contract import PlanContext
from compressor.engine.plan.pipeline import load_pipeline
from compressor.engine.plan.planner import make_plan
from compressor.errors import (
    DamagedArtifactError,
    GpuError,
    MissingExtraError,
    NumericalError,
    PassError,
    RequirementError,
)
from compressor.models.facts import ModelFacts
from compressor.runtimes.session import open_session
from compressor.runtimes.tensorrt import backends as tensorrt_backends
from compressor.runtimes.tensorrt.cuda import Gpu
from compressor.runtimes.tensorrt.files import checked_engine_manifest
from passes.tensorrt import building, choosing, graph
from passes.tensorrt.step import TensorRT, TensorRTConfig
from tests.unit.passes.tensorrt.engines import (
    PROFILES,
    SAMPLES,
    Arrays,
    built,
    cnn,
    model_of,
    node,
    parent_of,
    transformer,
    weight,
)

NETWORKS = {"cnn": cnn, "transformer": transformer}
FP16 = {"precision": "fp16", "calibration": {"data": "some", "num_samples": 6, "batch_size": 2}}


def fields_of(network, **fields):
    return {**FP16, "profiles": PROFILES[network], **fields}


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_network_becomes_an_engine_that_says_what_it_is(network, precision, tmp_path):
    notes = []
    parent = parent_of(NETWORKS[network](), tmp_path / "onnx")
    out = tmp_path / "out"
    told = built(fields_of(network, precision=precision), parent, SAMPLES[network], out, notes)
    manifest = checked_engine_manifest(out)
    assert sorted(file.name for file in out.iterdir()) == [
        "engine.json",
        "model.onnx",
        "model.sm86.engine",
    ]
    assert (manifest.backend, manifest.precision, manifest.backend_version) == (
        "rtx",
        precision,
        "1.7.1.116",
    )
    assert [(one.target, one.executed) for one in manifest.engines] == [("sm86", False)]
    assert manifest.onnx == {"model.onnx": digest_file(out / "model.onnx")}
    assert [(one.name, one.dtype) for one in (*manifest.inputs, *manifest.outputs)] == [
        ("x", "float"),
        ("logits", "float"),
    ]
    assert manifest.inputs[0].shape[0] == -1
    assert ("half" in manifest.layer_types) == (precision == "fp16")
    assert not told["executed"]
    assert "never run" in notes[0]
    assert told["against_parent"]["max_abs"] < (1e-6 if precision == "fp32" else 0.02)
    with (
        open_session("onnx", parent.model, threads=1) as before,
        open_session("onnx", out, threads=1) as after,
    ):
        batch = SAMPLES[network].batch(np.arange(2))
        np.testing.assert_allclose(
            after.run(batch)["logits"], before.run(batch)["logits"], atol=0.02
        )


def test_norms_and_softmax_stay_in_fp32_and_products_do_not(tmp_path):
    told = built(
        fields_of("transformer"),
        parent_of(transformer(), tmp_path / "onnx"),
        SAMPLES["transformer"],
        tmp_path / "out",
    )
    assert [(one["operator"], one["reason"]) for one in told["kept_fp32"]] == [
        ("LayerNormalization", "sums over many values"),
        ("Softmax", "sums over many values"),
        ("LayerNormalization", "sums over many values"),
    ]
    typed = onnx.shape_inference.infer_shapes(onnx.load(tmp_path / "out" / "model.onnx")).graph
    types = {one.name: one.type.tensor_type.elem_type for one in typed.value_info}
    products = [one.output[0] for one in typed.node if one.op_type == "MatMul"]
    assert len(products) == 8
    assert {types[name] for name in products} == {TensorProto.FLOAT16}


@pytest.mark.parametrize(
    "profiles", [{}, {"x": {"min": (2, 3, 12, 12), "opt": (2, 3, 12, 12), "max": (2, 3, 12, 12)}}]
)
def test_a_graph_of_one_size_needs_no_profile(profiles, tmp_path):
    model = cnn()
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 2
    built(
        {"precision": "fp32", "profiles": profiles},
        parent_of(model, tmp_path / "onnx"),
        SAMPLES["cnn"],
        tmp_path / "out",
    )
    assert checked_engine_manifest(tmp_path / "out").inputs[0].shape == (2, 3, 12, 12)


def test_the_same_bytes_again_from_another_process_and_folder(tmp_path):
    parent = parent_of(cnn(), tmp_path / "onnx")
    built(fields_of("cnn"), parent, SAMPLES["cnn"], tmp_path / "out")
    code = (
        "import sys; from pathlib import Path; from types import SimpleNamespace\n"
        "from tests.unit.passes.tensorrt.engines import SAMPLES, built\n"
        "from tests.unit.passes.tensorrt.test_tensorrt import fields_of\n"
        "built(fields_of('cnn'), SimpleNamespace(model=Path(sys.argv[1])), SAMPLES['cnn'], Path(sys.argv[2]))\n"
    )
    (tmp_path / "elsewhere").mkdir()
    subprocess.run(
        [sys.executable, "-c", code, parent.model, tmp_path / "elsewhere" / "again"], check=True
    )
    for file in (tmp_path / "out").iterdir():
        assert digest_file(file) == digest_file(tmp_path / "elsewhere" / "again" / file.name), (
            file.name
        )


def test_an_engine_for_each_target(tmp_path):
    told = built(
        fields_of("cnn", targets=("sm75", "sm89")),
        parent_of(cnn(), tmp_path / "onnx"),
        SAMPLES["cnn"],
        tmp_path / "out",
    )
    assert set(told["engine_bytes"]) == {"sm75", "sm89"}
    found = {one.target: one for one in checked_engine_manifest(tmp_path / "out").engines}
    assert found["sm75"].sha256 != found["sm89"].sha256


@pytest.mark.parametrize(
    "damage",
    [lambda data: data[:-100], lambda data: data[:50] + b"!" + data[51:]],
    ids=["truncated", "tampered"],
)
def test_a_real_engine_that_is_damaged_is_refused(damage, tmp_path):
    built(fields_of("cnn"), parent_of(cnn(), tmp_path / "onnx"), SAMPLES["cnn"], tmp_path / "out")
    assert checked_engine_manifest(tmp_path / "out")
    file = tmp_path / "out" / "model.sm86.engine"
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(DamagedArtifactError, match=r"model\.sm86\.engine: (truncated|changed)"):
        open_session("engine", tmp_path / "out", threads=1)


def test_int4_weights_in_blocks(tmp_path):
    parent = parent_of(transformer(opset=21), tmp_path / "onnx")
    told = built(
        fields_of("transformer", precision="int4", block_size=32),
        parent,
        SAMPLES["transformer"],
        tmp_path / "out",
    )
    assert (told["int4_weights"], told["not_int4"]) == (6, [])
    stored_graph = onnx.load(tmp_path / "out" / "model.onnx").graph
    stored = [one for one in stored_graph.initializer if one.data_type == TensorProto.INT4]
    assert [tuple(one.dims) for one in stored] == [(64, 64)] * 4 + [(64, 128), (128, 64)]
    assert told["layer_types"]["int4"] == 6
    assert 0.98 < told["against_parent"]["cosine"] < 0.9999


def test_weights_beside_the_graph_are_read_and_written_beside_it_where_they_must_be(
    tmp_path, monkeypatch
):
    folder = tmp_path / "onnx"
    folder.mkdir()
    onnx.save(
        transformer(),
        folder / "model.onnx",
        save_as_external_data=True,
        location="model.onnx.data",
        size_threshold=256,
    )
    built(
        fields_of("transformer"),
        SimpleNamespace(model=folder),
        SAMPLES["transformer"],
        tmp_path / "out",
    )
    monkeypatch.setattr(graph, "PROTOBUF_LIMIT_BYTES", 1000)
    fields = fields_of("transformer", precision="fp32")
    built(fields, SimpleNamespace(model=folder), SAMPLES["transformer"], tmp_path / "large")
    assert set(checked_engine_manifest(tmp_path / "large").onnx) == {
        "model.onnx",
        "model.onnx.data",
    }
    with pytest.raises(
        RequirementError, match="graphs of more than 2 GB are not converted to FP16"
    ):
        built(
            fields_of("transformer"),
            SimpleNamespace(model=folder),
            SAMPLES["transformer"],
            tmp_path / "half",
        )


@pytest.mark.parametrize(
    ("fields", "opset", "told"),
    [
        ({"precision": "int4"}, 20, "the graph is of opset 20, and INT4 came with 21"),
        (
            {"precision": "int4", "block_size": 128, "network": "cnn"},
            21,
            "no weight of the graph can be stored in blocks of 128",
        ),
    ],
)
def test_int4_that_cannot_be(fields, opset, told, tmp_path):
    network = fields.pop("network", "transformer")
    model = NETWORKS[network]()
    model.opset_import[0].version = opset
    with pytest.raises(RequirementError, match=told):
        built(
            fields_of(network, **fields),
            parent_of(model, tmp_path / "onnx"),
            SAMPLES[network],
            tmp_path / "out",
        )


def overflowing():
    """Values of some 1e5 between two products of moderate ones."""
    nodes = [node("MatMul", "x w", "large"), node("MatMul", "large small", "logits")]
    return model_of(nodes, {"w": 2000 * weight(16, 16), "small": weight(16, 4) / 2000}, ("n", 16))


def test_what_would_overflow_stays_in_fp32_and_is_told(tmp_path):
    samples = Arrays(x=50 * np.random.default_rng(0).normal(size=(6, 16)).astype(np.float32))
    profiles = {"x": {"min": (1, 16), "opt": (1, 16), "max": (4, 16)}}
    told = built(
        {**FP16, "profiles": profiles},
        parent_of(overflowing(), tmp_path / "onnx"),
        samples,
        tmp_path / "out",
    )
    assert told["largest_magnitude"] > 65504
    assert [one["node"] for one in told["kept_fp32"]] == ["large", "logits"]
    assert all("large reaches" in one["reason"] for one in told["kept_fp32"])
    assert told["kept_fp32_reasons"] == {"overflows FP16": 2}
    assert told["against_parent"]["cosine"] > 0.99999


def test_a_graph_that_computes_nan_is_told(tmp_path):
    model = model_of([node("Log", "x", "log"), node("Relu", "log", "logits")], {}, ("n", 4))
    samples = Arrays(x=np.full((6, 4), -1, np.float32))
    profiles = {"x": {"min": (1, 4), "opt": (1, 4), "max": (4, 4)}}
    with pytest.raises(NumericalError, match="computes NaN in FP32 on samples of 'some': log"):
        built(
            {**FP16, "profiles": profiles},
            parent_of(model, tmp_path / "onnx"),
            samples,
            tmp_path / "out",
        )


def test_bytes_are_cast_at_once_as_tensorrt_computes_nothing_with_them(tmp_path):
    model = model_of(
        [
            node("Reshape", "x flat", "rows"),
            node("Cast", "rows", "cast", to=1),
            node("MatMul", "cast w", "logits"),
        ],
        {"flat": np.array([-1, 16]), "w": weight(16, 4)},
        ("n", 4, 4),
    )
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.UINT8
    samples = Arrays(x=np.random.default_rng(0).integers(0, 256, (6, 4, 4)).astype(np.uint8))
    profiles = {"x": {"min": (1, 4, 4), "opt": (1, 4, 4), "max": (4, 4, 4)}}
    built(
        {**FP16, "profiles": profiles},
        parent_of(model, tmp_path / "onnx"),
        samples,
        tmp_path / "out",
    )
    assert checked_engine_manifest(tmp_path / "out").inputs[0].dtype == "uint8"
    model.graph.node[0].op_type = "Neg"
    del model.graph.node[0].input[1:]
    with pytest.raises(
        RequirementError, match="input x: it is UINT8, and Neg rows computes with it"
    ):
        built(
            {**FP16, "profiles": profiles},
            parent_of(model, tmp_path / "neg"),
            samples,
            tmp_path / "no",
        )


def test_every_offender_is_named_before_anything_is_built(tmp_path):
    model = transformer()
    model.graph.node.append(
        onnx.helper.make_node("QuickGelu", ["x"], ["unused"], name="quick", domain="com.microsoft")
    )
    model.opset_import.append(onnx.helper.make_opsetid("com.microsoft", 1))
    profiles = {
        "x": {"min": (1, 8, 64), "opt": (1, 8, 64), "max": (4, 16, 64)},
        "z": {"min": (1,), "opt": (1,), "max": (1,)},
    }
    with pytest.raises(RequirementError) as caught:
        built(
            fields_of("transformer", precision="int8", profiles=profiles),
            parent_of(model, tmp_path / "onnx"),
            SAMPLES["transformer"],
            tmp_path / "out",
        )
    assert caught.value.exit_code == 1
    for line in (
        "precision int8: the graph holds no INT8 integers",
        "profile z: the graph has no such input",
        "profile x: dimension 1 is from 8 to 16, and 7 in the samples",
        "QuickGelu quick: an operator of com.microsoft",
    ):
        assert line in caught.value.what
    assert not (tmp_path / "out").exists()


def test_what_stays_in_fp32_may_have_no_kernels_on_an_old_gpu(tmp_path):
    samples = Arrays(x=50 * np.random.default_rng(0).normal(size=(6, 16)).astype(np.float32))
    fields = {
        **FP16,
        "targets": ("sm75",),
        "profiles": {"x": {"min": (1, 16), "opt": (1, 16), "max": (4, 16)}},
    }
    with pytest.raises(
        RequirementError, match="MatMul large: FP32 products have no kernels on sm75"
    ):
        built(fields, parent_of(overflowing(), tmp_path / "onnx"), samples, tmp_path / "out")


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"precision": "fp16"}, "FP16 wants `calibration"),
        ({"precision": "fp32", "floats": "fp16"}, "contradict"),
        ({"precision": "fp32", "targets": ["sm86", "sm86"]}, "names sm86 more than once"),
        ({"precision": "fp32", "targets": ["8.6"]}, "String should match pattern"),
    ],
)
def test_configs_that_contradict_themselves(fields, told):
    with pytest.raises(ValidationError, match=told):
        TensorRTConfig.model_validate_json(json.dumps(fields))


def config_of(**fields):
    return TensorRTConfig.model_validate({"precision": "fp32", **fields})


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"backend": "rtx"}, "`targets` names none"),
        (
            {"backend": "rtx", "targets": ("sm90", "sm86", "sm70")},
            "tensorrt-rtx does not build for sm90, sm70",
        ),
        (
            {"backend": "trt", "targets": ("sm86", "sm89")},
            "for the GPU at hand alone, and `targets` names sm86, sm89",
        ),
    ],
)
def test_targets_are_refused_in_the_plan(fields, told, monkeypatch):
    monkeypatch.setattr(tensorrt_backends, "find_spec", lambda name: name)
    with pytest.raises(RequirementError, match=told):
        TensorRT().estimate(config_of(**fields), ModelFacts(), PlanContext({}))


@pytest.mark.parametrize(
    ("backend", "extra"), [("rtx", "trt-rtx"), ("trt", "trt"), ("auto", "trt-rtx")]
)
def test_a_missing_extra_is_found_in_the_plan(backend, extra, monkeypatch):
    monkeypatch.setattr(choosing, "gpus", lambda: (Gpu("a card", "sm86"),))
    monkeypatch.setattr(tensorrt_backends, "find_spec", lambda _: None)
    with pytest.raises(MissingExtraError) as caught:
        TensorRT().estimate(
            config_of(backend=backend, targets=("sm86",)), ModelFacts(), PlanContext({})
        )
    assert caught.value.remedy == f"pip install 'autoglm-compress[{extra}]'"


@pytest.mark.parametrize(
    ("found", "told"),
    [((), "there is no GPU here"), ((Gpu("an H200", "sm90"),), r"an H200\) is sm90")],
)
def test_enterprise_tensorrt_without_its_gpu_fails_and_says_so(found, told, tmp_path, monkeypatch):
    monkeypatch.setattr(tensorrt_backends, "find_spec", lambda name: name)
    monkeypatch.setattr(choosing, "gpus", lambda: found)
    fields = fields_of("cnn", backend="trt")
    with pytest.raises(GpuError, match=told) as caught:
        built(fields, parent_of(cnn(), tmp_path / "onnx"), SAMPLES["cnn"], tmp_path / "out")
    assert caught.value.exit_code == 1
    assert "on_missing_gpu: bundle" in str(caught.value.remedy)


def test_a_plan_on_a_machine_without_the_gpu_ends_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(choosing, "gpus", lambda: ())
    parent_of(cnn(), tmp_path / "model")
    file = tmp_path / "pipeline.yaml"
    step = "{type: tensorrt, backend: trt, precision: fp32, profiles: {x: {min: [1], opt: [1], max: [1]}}}"
    file.write_text(f"version: 1\nname: one\nmodel: {{path: model}}\npasses: [{step}]\n")
    with pytest.raises(GpuError, match="there is no GPU here"):
        make_plan(load_pipeline(file), Store(tmp_path / "store"), SourceContext(tmp_path))


def test_a_bundle_holds_all_but_an_engine_and_is_called_one(tmp_path, monkeypatch):
    monkeypatch.setattr(choosing, "gpus", lambda: ())
    notes = []
    fields = fields_of("cnn", backend="trt", on_missing_gpu="bundle", optimization_level=4)
    told = built(
        fields, parent_of(cnn(), tmp_path / "onnx"), SAMPLES["cnn"], tmp_path / "out", notes
    )
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == [
        "bundle.json",
        "model.onnx",
    ]
    assert json.loads((tmp_path / "out" / "bundle.json").read_text())["command"] == (
        "trtexec --onnx=model.onnx --stronglyTyped --memPoolSize=workspace:1024 --builderOptimizationLevel=4 "
        "--minShapes=x:1x3x12x12 --optShapes=x:1x3x12x12 --maxShapes=x:8x3x12x12 --saveEngine=model.engine"
    )
    assert not told["executed"]
    assert "a build bundle was written, and no engine" in notes[0]


def test_what_the_library_prints_stays_out_of_standard_output(tmp_path, capfd):
    built(
        fields_of("transformer"),
        parent_of(transformer(), tmp_path / "onnx"),
        SAMPLES["transformer"],
        tmp_path / "out",
    )
    assert capfd.readouterr() == ("", "")


def test_what_the_linter_does_not_know_the_parser_tells(tmp_path):
    model = model_of([node("Unique", "x", "logits")], {}, ("n", 4))
    profiles = {"x": {"min": (1, 4), "opt": (1, 4), "max": (4, 4)}}
    with pytest.raises(PassError, match="Unique logits") as caught:
        built(
            {"precision": "fp32", "profiles": profiles},
            parent_of(model, tmp_path / "onnx"),
            SAMPLES["cnn"],
            tmp_path / "out",
        )
    assert "Cuda" not in str(caught.value)


def test_a_compiler_that_crashes_costs_the_step_alone(tmp_path, monkeypatch):
    crash = "import os, sys; print('about to', file=sys.stderr, flush=True); os.abort()"
    run = subprocess.run
    monkeypatch.setattr(
        building.subprocess, "run", lambda _, **more: run([sys.executable, "-c", crash], **more)
    )
    with pytest.raises(
        PassError,
        match=r"tensorrt-rtx was killed by signal 6 while it built model\.onnx for sm86:\n    about to",
    ):
        built(
            fields_of("cnn"), parent_of(cnn(), tmp_path / "onnx"), SAMPLES["cnn"], tmp_path / "out"
        )


def test_nothing_heavy_is_imported_with_the_step():
    code = (
        "import sys, passes.tensorrt.step\n"
        "assert not {'torch', 'onnx', 'onnxruntime', 'tensorrt', 'tensorrt_rtx'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
