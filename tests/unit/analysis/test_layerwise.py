"""A defect that is planted in one layer is found, by comparing layer by layer and by putting layers back."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from compressor.analysis.bisect import bisect
from compressor.analysis.layerwise import compare_layers
from compressor.analysis.tensors import relative_error, tensor_differences
from compressor.artifacts.manifest import Environment, Manifest, PassRecord
from compressor.artifacts.runs import RunRecord, RunStep, save_run
from compressor.artifacts.store import Store, entries_of
from compressor.config.discovery import FAMILIES, load
from compressor.data.contract import Dataset, SourceContext
from compressor.errors import UsageError
from compressor.evaluation.records import AccuracyConfig, EvaluateConfig
from compressor.models.checkpoint.loading import load_module
from compressor.runtimes.formats import StoredModel, format_named, open_layers, open_session

PLANTED = (
    "vision.blocks.0.filter",
    "text_encoder.layers.0.ffn.down",
    "fusion.layers.0.ffn_norm",
    "vision.stem_norm",
)
HERE = Environment(platform="", cpu="", cores=1, memory_bytes=1, python="", threads=1, device="cpu")


def planted(source: Path, target: Path, layer: str, strength: float = 0.6) -> Path:
    """The model with one layer spoilt."""
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
        for one in module.modules():
            if isinstance(one, nn.BatchNorm2d | nn.BatchNorm1d):
                one.running_mean.normal_()
                one.running_var.uniform_(0.5, 2)
    family.save(module, family.presets["bed-student"], folder)
    return folder


def samples(count: int) -> dict[str, np.ndarray]:
    draw = np.random.default_rng(0)
    return {
        "screen": draw.integers(0, 256, (count, 3, 96, 96)).astype(np.uint8),
        "tokens": draw.integers(1, 60, (count, 12)),
        "mel": draw.normal(size=(count, 80, 64)).astype(np.float32),
    }


@pytest.mark.parametrize("layer", PLANTED)
def test_the_layer_that_adds_most_is_the_planted_one(
    model: Path, tmp_path: Path, layer: str
) -> None:
    spoilt = planted(model, tmp_path / "spoilt", layer)
    found = compare_layers(*(open_layers("torch", one, 1) for one in (model, spoilt)), samples(3))
    wanted = layer.removesuffix("_norm") if layer.startswith("vision") else layer
    assert found.layers[0].layer == wanted
    assert found.layers[0].added is not None
    assert found.layers[0].added > 0.01
    assert all(not one.added for one in found.layers[1:]), (
        "nothing else differs, and no layer answers for another"
    )
    assert found.parts_at == wanted
    assert found.answers["logits"] > 0


def stored(folder: Path) -> StoredModel:
    return StoredModel(format_named("torch"), folder)


def test_equal_models_do_not_part(model: Path) -> None:
    one = open_layers("torch", model, 1)
    found = compare_layers(one, one, samples(2))
    assert found.parts_at is None
    assert {layer.error for layer in found.layers} == {0.0}
    assert all(one.equal for one in tensor_differences(stored(model), stored(model)))


def test_the_tensor_that_differs_comes_first(model: Path, tmp_path: Path) -> None:
    spoilt = planted(model, tmp_path / "spoilt", PLANTED[1])
    found = tensor_differences(stored(model), stored(spoilt))
    assert found[0].name == f"{PLANTED[1]}.weight"
    assert found[0].snr_db == pytest.approx(-10 * np.log10(0.36), abs=0.3)
    assert all(one.equal for one in found[1:])


def test_relative_error() -> None:
    assert relative_error(np.array([1, 3]), np.array([1, 2])) == pytest.approx(0.2)
    assert relative_error(np.zeros(2), np.zeros(2)) == 0
    assert relative_error(np.ones(2), np.zeros(2)) == np.inf


class Answered(Dataset):
    """Samples whose labels are what a model answers."""

    input_names, label_name = ("screen", "tokens", "mel"), "label"

    def __init__(self, model: Path, count: int) -> None:
        self.arrays = samples(count)
        with open_session("torch", model, threads=1) as session:
            self.arrays["label"] = session.run(self.arrays)["logits"].argmax(axis=-1)

    def __len__(self) -> int:
        return len(self.arrays["label"])

    def batch(self, indices: np.ndarray, epoch: int = 0) -> dict[str, np.ndarray]:
        return {name: array[indices] for name, array in self.arrays.items()}


def publish(store: Store, model: Path, name: str, parent: str | None) -> RunStep:
    """The model as an artifact of a step."""
    staged = store.staging(name * 12) / "out"
    (staged / "model").mkdir(parents=True)
    for file in model.iterdir():
        (staged / "model" / file.name).write_bytes(file.read_bytes())
    manifest = Manifest(
        id=name * 12,
        step=name,
        kind="torch",
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
def test_bisect_names_the_pass_and_the_layer(model: Path, tmp_path: Path, each: bool) -> None:
    culprit = "fusion.adapter_in"
    spoilt, later = (planted(model, tmp_path / name, culprit, 20) for name in ("spoilt", "later"))
    store = Store(tmp_path / "store")
    steps = [
        publish(store, model, "origin", None),
        publish(store, model, "harmless", "origin"),
        publish(store, spoilt, "harmful", "harmless"),
        publish(store, later, "afterwards", "harmful"),
    ]
    run = save_run(
        store.root, RunRecord(pipeline="planted", command="", steps=tuple(steps), gates=())
    )
    dataset = Answered(model, 24)
    pipeline = SimpleNamespace(
        config=SimpleNamespace(
            evaluate=EvaluateConfig(accuracy=AccuracyConfig(data="test")), threads=1
        ),
        data={
            "test": SimpleNamespace(source=SimpleNamespace(load=lambda *_: dataset), config=None)
        },
    )
    found = bisect(run, "top1", pipeline, SourceContext(tmp_path), samples=24, each=each)  # type: ignore[arg-type]
    assert (found.culprit, found.layer) == ("harmful", culprit)
    assert all(one.lost == 0 for one in found.passes if one.step != "harmful")
    assert len(found.trials) == (53 if each else len(found.trials) <= 12 and len(found.trials))
    with pytest.raises(UsageError, match="no two steps of the chain"):
        bisect(run, "top1", pipeline, SourceContext(tmp_path), step="harmless")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="no step 'nothing'"):
        bisect(run, "top1", pipeline, SourceContext(tmp_path), step="nothing")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="expected one that labels decide"):
        bisect(run, "kl", pipeline, SourceContext(tmp_path))  # type: ignore[arg-type]
