"""Tests that a defect planted in one layer is found, layer by layer and by bisection."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from compressor.analysis.bisect import Bisection, BisectOptions, bisect
from compressor.analysis.layerwise import compare_layers
from compressor.analysis.tensors import compare_tensors, relative_error
from compressor.artifacts.artifact import entries_of
from compressor.artifacts.manifest import Environment, Manifest, PassRecord
from compressor.artifacts.runs import RunRecord, RunStep, save_run
from compressor.artifacts.store import Store
from compressor.config.discovery import FAMILIES, load
from compressor.data.contract import Batch, Dataset, SourceContext
from compressor.errors import UsageError
from compressor.evaluation.records import AccuracyConfig, EvaluateConfig
from compressor.models.checkpoint.loading import load_module
from compressor.runtimes.formats import StoredModel, format_named, open_layers, open_session
from compressor.runtimes.layers import Layers, Trace
from tests.support.engines import Arrays
from tests.support.foreign_graphs import IMAGES, Optimized, residual_network

FAULTY_LAYERS = (
    "vision.blocks.0.filter",
    "text_encoder.layers.0.ffn.down",
    "fusion.layers.0.ffn_norm",
    "vision.stem_norm",
)
HERE = Environment(platform="", cpu="", cores=1, memory_bytes=1, python="", threads=1, device="cpu")


def save_with_fault(source: Path, target: Path, layer: str, strength: float = 0.6) -> Path:
    """Save a model with noise in the weight of one layer."""
    family = load(FAMILIES, "autoglm-phone")
    module = load_module(source)
    with torch.no_grad():
        weight = module.get_submodule(layer).weight
        weight.mul_(
            1 + strength * torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))
        )
    family.save(module, family.presets["bed-student"], target)
    return target


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    family = load(FAMILIES, "autoglm-phone")
    torch.manual_seed(0)
    module = family.build(family.presets["bed-student"])
    with torch.no_grad():
        for layer in module.modules():
            if isinstance(layer, nn.BatchNorm2d | nn.BatchNorm1d):
                layer.running_mean.normal_()
                layer.running_var.uniform_(0.5, 2)
    family.save(module, family.presets["bed-student"], folder)
    return folder


def samples(count: int) -> dict[str, np.ndarray]:
    draw = np.random.default_rng(0)
    return {
        "screen": draw.integers(0, 256, (count, 3, 96, 96)).astype(np.uint8),
        "tokens": draw.integers(1, 60, (count, 12)),
        "mel": draw.normal(size=(count, 80, 64)).astype(np.float32),
    }


@pytest.mark.parametrize("layer", FAULTY_LAYERS)
def test_the_faulty_layer_adds_the_largest_error(model: Path, tmp_path: Path, layer: str) -> None:
    faulty = save_with_fault(model, tmp_path / "faulty", layer)
    layers = (open_layers("torch", folder, 1) for folder in (model, faulty))
    comparison = compare_layers(*layers, samples(3))
    expected = layer.removesuffix("_norm") if layer.startswith("vision") else layer
    assert comparison.layers[0].layer == expected
    assert comparison.layers[0].added is not None
    assert comparison.layers[0].added > 0.01
    assert all(not other.added for other in comparison.layers[1:]), (
        "no other layer differs, and errors are not attributed to later layers"
    )
    assert comparison.parts_at == expected
    assert comparison.answers["logits"] > 0


class Stub(Layers):
    """Layers of one traced batch."""

    def __init__(self, output: np.ndarray, from_zero: frozenset[str] = frozenset()) -> None:
        self.output, self.from_zero = output, from_zero

    def trace(self, batch: Batch) -> Trace:
        values = {"conv": self.output}
        return Trace(values, values, {}, self.from_zero)

    def alone(self, batch: Batch, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {"conv": self.output}


def test_what_a_grid_from_zero_cuts_off_before_a_relu_is_no_error() -> None:
    values = np.array([-2.0, 1.0, 3.0], np.float32)
    rounded = Stub(np.maximum(values, 0), frozenset({"conv"}))
    batch = {"x": values}
    layer = compare_layers(Stub(values), rounded, batch).layers[0]
    assert (layer.error, layer.added) == (0.0, 0.0)
    assert compare_layers(Stub(values), Stub(np.maximum(values, 0)), batch).layers[0].error


def torch_model(folder: Path) -> StoredModel:
    return StoredModel(format_named("torch"), folder)


def test_equal_models_have_no_error(model: Path) -> None:
    layers = open_layers("torch", model, 1)
    comparison = compare_layers(layers, layers, samples(2))
    assert comparison.parts_at is None
    assert {layer.error for layer in comparison.layers} == {0.0}
    assert all(tensor.equal for tensor in compare_tensors(torch_model(model), torch_model(model)))


def test_the_tensor_that_differs_comes_first(model: Path, tmp_path: Path) -> None:
    faulty = save_with_fault(model, tmp_path / "faulty", FAULTY_LAYERS[1])
    tensors = compare_tensors(torch_model(model), torch_model(faulty))
    assert tensors[0].name == f"{FAULTY_LAYERS[1]}.weight"
    assert tensors[0].snr_db == pytest.approx(-10 * np.log10(0.36), abs=0.3)
    assert all(tensor.equal for tensor in tensors[1:])


def test_relative_error_of_equal_and_of_zero_arrays() -> None:
    assert relative_error(np.array([1, 3]), np.array([1, 2])) == pytest.approx(0.2)
    assert relative_error(np.zeros(2), np.zeros(2)) == 0
    assert relative_error(np.ones(2), np.zeros(2)) == np.inf


class PredictedLabels(Dataset):
    """Samples labelled with the predictions of a model."""

    input_names, label_name = ("screen", "tokens", "mel"), "label"

    def __init__(self, model: Path, count: int) -> None:
        self.arrays = samples(count)
        with open_session("torch", model, threads=1) as session:
            self.arrays["label"] = session.run(self.arrays)["logits"].argmax(axis=-1)

    def __len__(self) -> int:
        return len(self.arrays["label"])

    def batch(self, indices: np.ndarray, epoch: int = 0) -> dict[str, np.ndarray]:
        return {name: array[indices] for name, array in self.arrays.items()}


def publish(
    store: Store, model: Path, name: str, parent: str | None, kind: str = "torch"
) -> RunStep:
    """Publish a model as the artifact of a step."""
    staged = store.staging(name * 12) / "out"
    (staged / "model").mkdir(parents=True)
    for file in model.iterdir():
        (staged / "model" / file.name).write_bytes(file.read_bytes())
    manifest = Manifest(
        id=name * 12,
        step=name,
        kind=kind,
        parents={},
        pass_=PassRecord(name=name, version=1, config={}),
        seed=0,
        tools={},
        data={},
        files=entries_of(staged, "model"),
        reports={},
        measured="",
        metrics=(),
        summary={},
        environment=HERE,
        created="",
        seconds=0,
        peak_rss_bytes=0,
    )
    artifact = store.publish(staged, manifest)
    return RunStep(
        name=name,
        artifact=artifact.name,
        id=artifact.id,
        manifest=artifact.manifest.digest,
        parent=parent,
    )


@pytest.mark.parametrize("each", [False, True])
def test_bisect_finds_the_pass_and_the_layer(model: Path, tmp_path: Path, each: bool) -> None:
    culprit = "fusion.adapter_in"
    faulty, later = (
        save_with_fault(model, tmp_path / name, culprit, 20) for name in ("faulty", "later")
    )
    store = Store(tmp_path / "store")
    steps = [
        publish(store, model, "origin", None),
        publish(store, model, "harmless", "origin"),
        publish(store, faulty, "harmful", "harmless"),
        publish(store, later, "afterwards", "harmful"),
    ]
    record = RunRecord(pipeline="planted", command="", steps=tuple(steps), gates=())
    with save_run(store, record) as (run, _):
        pass
    dataset = PredictedLabels(model, 24)
    pipeline: Any = SimpleNamespace(
        config=SimpleNamespace(
            evaluate=EvaluateConfig(accuracy=AccuracyConfig(data="test")), threads=1
        ),
        data={
            "test": SimpleNamespace(source=SimpleNamespace(load=lambda *_: dataset), config=None)
        },
    )
    context = SourceContext(tmp_path)

    def bisect_run(metric: str = "top1", **options: Any) -> Bisection:
        return bisect(run, pipeline, context, BisectOptions(metric, **options))

    result = bisect_run(samples=24, each=each)
    assert (result.culprit, result.layer) == ("harmful", culprit)
    assert all(loss.lost == 0 for loss in result.passes if loss.step != "harmful")
    assert len(result.trials) == 53 if each else 0 < len(result.trials) <= 12
    with pytest.raises(UsageError, match="no two steps of the chain"):
        bisect_run(step="harmless")
    with pytest.raises(UsageError, match="no step 'nothing'"):
        bisect_run(step="nothing")
    with pytest.raises(UsageError, match="unknown metric") as error:
        bisect_run("kll")
    assert "kl, " in str(error.value.remedy)
    if each:
        return
    result = bisect_run("kl", samples=24)
    assert (result.metric, result.culprit, result.layer) == ("kl", "harmful", culprit)


def test_graphs_of_other_tools_are_bisected_without_labels(tmp_path: Path) -> None:
    made = Optimized(residual_network(), tmp_path, {"image": IMAGES}, smoothing=False)
    store = Store(tmp_path / "store")
    steps = [
        publish(store, made.parent, "origin", None, "onnx"),
        publish(store, made.parent, "same", "origin", "onnx"),
        publish(store, made.out, "integers", "same", "onnx"),
    ]
    record = RunRecord(pipeline="foreign", command="", steps=tuple(steps), gates=())
    with save_run(store, record) as (run, _):
        pass
    accuracy = AccuracyConfig(data="test", metrics=("relative_error", "cosine"))
    source = SimpleNamespace(load=lambda *_: Arrays(image=IMAGES))
    pipeline: Any = SimpleNamespace(
        config=SimpleNamespace(evaluate=EvaluateConfig(accuracy=accuracy), threads=1),
        data={"test": SimpleNamespace(source=source, config=None)},
    )
    result = bisect(run, pipeline, SourceContext(tmp_path), BisectOptions(samples=24))
    assert (result.metric, result.culprit) == ("relative_error", "integers")
    assert [loss.before for loss in result.passes] == [0, 0]
    assert result.passes[1].after == pytest.approx(made.error(), rel=0.3)
    assert "`compare -p` shows the error that each layer adds" in str(result.why_not)


def test_layers_that_nothing_but_names_pairs_are_told(tmp_path: Path) -> None:
    made = Optimized(residual_network(), tmp_path, {"image": IMAGES}, smoothing=False)
    parent, child = (open_layers("onnx", path, threads=1) for path in (made.parent, made.out))
    batch = {"image": IMAGES[:4]}
    assert not compare_layers(parent, child, batch).paired_by_name
    assert compare_layers(parent, parent, batch).paired_by_name
