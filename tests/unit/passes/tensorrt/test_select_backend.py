"""Backends and targets of a step: errors while planning, and GPUs of this machine."""

import pytest

from compressor.artifacts.store import Store
from compressor.data.contract import SourceContext
from compressor.engine.contract import PlanContext
from compressor.engine.plan.pipeline import load_pipeline
from compressor.engine.plan.planner import make_plan
from compressor.errors import ConfigError, GpuError, MissingExtraError, RequirementError
from compressor.models.facts import ModelFacts
from compressor.runtimes.tensorrt import backends
from compressor.runtimes.tensorrt.cuda import Gpu
from passes.tensorrt import select_backend
from passes.tensorrt.config import TensorRTConfig
from passes.tensorrt.step import TensorRT
from tests.support.engines import SAMPLES, build_engine, cnn, fields_of, save_parent


def estimate(**fields):
    config = TensorRTConfig.model_validate({"precision": "fp32", **fields})
    return TensorRT().estimate(config, ModelFacts(), PlanContext({}))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"backend": "rtx"}, "`targets` is empty"),
        (
            {"backend": "rtx", "targets": ("sm90", "sm86", "sm70")},
            "tensorrt-rtx does not build for sm90, sm70",
        ),
        (
            {"backend": "trt", "targets": ("sm86", "sm89")},
            "for the GPU of this machine only, but `targets` names sm86, sm89",
        ),
    ],
)
def test_targets_are_checked_in_the_plan(fields, message, monkeypatch):
    monkeypatch.setattr(backends, "find_spec", lambda name: name)
    with pytest.raises(RequirementError, match=message):
        estimate(**fields)


def test_on_missing_gpu_is_refused_where_auto_needs_no_gpu(monkeypatch):
    monkeypatch.setattr(
        backends, "find_spec", lambda name: name if name == "tensorrt_rtx" else None
    )
    with pytest.raises(RequirementError) as caught:
        estimate(targets=("sm10",), on_missing_gpu="bundle")
    assert "tensorrt-rtx does not build for sm10" in caught.value.what
    assert "`on_missing_gpu` has no effect with tensorrt-rtx" in caught.value.what


@pytest.mark.parametrize(
    ("backend", "extra"), [("rtx", "trt-rtx"), ("trt", "trt"), ("auto", "trt-rtx")]
)
def test_a_missing_extra_is_found_in_the_plan(backend, extra, monkeypatch):
    monkeypatch.setattr(select_backend, "list_gpus", lambda: (Gpu("a card", "sm86"),))
    monkeypatch.setattr(backends, "find_spec", lambda _: None)
    with pytest.raises(MissingExtraError) as caught:
        estimate(backend=backend, targets=("sm86",))
    assert caught.value.remedy == f"pip install 'autoglm-compress[{extra}]'"


@pytest.mark.parametrize(
    ("gpus", "message"),
    [((), "this machine has no GPU"), ((Gpu("an H200", "sm90"),), r"\(an H200\) is sm90")],
)
def test_enterprise_tensorrt_without_its_gpu_fails(gpus, message, tmp_path, monkeypatch):
    monkeypatch.setattr(backends, "find_spec", lambda name: name)
    monkeypatch.setattr(select_backend, "list_gpus", lambda: gpus)
    fields = fields_of("cnn", backend="trt")
    parent = save_parent(cnn(), tmp_path / "onnx")
    with pytest.raises(GpuError, match=message) as caught:
        build_engine(fields, parent, SAMPLES["cnn"], tmp_path / "out")
    assert caught.value.exit_code == 1
    assert "on_missing_gpu: bundle" in str(caught.value.remedy)


def test_a_plan_on_a_machine_without_the_gpu_fails(tmp_path, monkeypatch):
    monkeypatch.setattr(select_backend, "list_gpus", lambda: ())
    save_parent(cnn(), tmp_path / "model")
    file = tmp_path / "pipeline.yaml"
    profiles = "profiles: {x: {min: [1], opt: [1], max: [1]}}"
    step = f"{{type: tensorrt, backend: trt, precision: fp32, {profiles}}}"
    file.write_text(f"version: 1\nname: one\nmodel: {{path: model}}\npasses: [{step}]\n")
    with pytest.raises(
        ConfigError, match=r"pipeline.yaml:4: passes\[0\]: .*this machine has no GPU"
    ):
        make_plan(load_pipeline(file), Store(tmp_path / "store"), SourceContext(tmp_path))
