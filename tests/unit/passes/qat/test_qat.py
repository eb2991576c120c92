"""The whole pass on a small CNN: accurate, told, resumable, and refused where it must be."""

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from calibration.table import TABLE
from compressor.engine.contract import PassContext
from compressor.errors import DataError, NumericalError, RequirementError
from compressor.models.capabilities.cuttable_axes import replace_fields
from compressor.models.capabilities.training_heads import TrainingHeads
from compressor.models.checkpoint.loading import load_module
from compressor.models.quantized.fake_quantization import IntegerLayer, Rounding, fold
from compressor.models.quantized.quantization import read_quantization
from passes.common.accuracy import evaluate_accuracy
from passes.common.config import TrainingConfig
from passes.common.losses import hard_cross_entropy
from passes.common.training import fit
from passes.qat.bias import correct_biases
from passes.qat.step import Qat, QatConfig
from tests.support.tiny_models import CLASSIFIER
from tests.support.training import Blobs, Killed


class Blank(Blobs):
    def batch(self, indices, epoch=0):
        return {"image": np.zeros((len(indices), 3, 16, 16), np.uint8), "label": indices % 2}


class Unlabelled(Blobs):
    def batch(self, indices, epoch=0):
        return {"image": super().batch(indices, epoch)["image"]}


class Third(Blobs):
    def batch(self, indices, epoch=0):
        return super().batch(indices, epoch) | {"label": indices % 3}


class Empty(Blobs):
    def __len__(self):
        return 0


SETS = {
    "train": Blobs(),
    "blank": Blank(),
    "empty": Empty(),
    "unlabelled": Unlabelled(),
    "third": Third(),
}


@pytest.fixture(scope="module")
def parent(tmp_path_factory):
    """Trained enough to tell the corners apart."""
    torch.manual_seed(0)
    config = replace_fields(
        CLASSIFIER.presets["small"],
        {("num_classes",): 2, ("image_size",): 16, ("vision_activation",): "relu6"},
    )
    folder = tmp_path_factory.mktemp("parent")
    module = CLASSIFIER.build(config)
    recipe = TrainingConfig(steps=60, batch_size=16, learning_rate=3e-3)
    fit(
        module,
        Blobs(),
        recipe,
        seed=0,
        checkpoint_dir=folder,
        objective=lambda outputs, batch, _: hard_cross_entropy(
            CLASSIFIER.require(TrainingHeads, config).logits(module, outputs), batch
        ),
    )
    CLASSIFIER.save(module, config, folder / "model")
    return SimpleNamespace(
        model=folder / "model", manifest=SimpleNamespace(id="ab12", kind="torch")
    )


def quantized(parent, folder, fields=None, kill=None, artifacts=None):
    """Run the pass; ``kill`` is (what, done) of the progress at which it dies. Returns folder, summary and notes."""
    work, out, notes = folder / "work", folder / "out", []
    shutil.rmtree(out, ignore_errors=True)
    for one in (work, out):
        one.mkdir(parents=True, exist_ok=True)

    def progress(what, done, total, figures):
        if kill is not None and (what, done) == kill:
            raise Killed

    context = PassContext(
        artifacts or {},
        SETS.__getitem__,
        work,
        0,
        1,
        "cpu",
        "ab" * 32,
        progress,
        notes.append,
        folder / "cache",
    )
    tree = {"calibration": {"data": "train", "num_samples": 32, "batch_size": 16}} | (fields or {})
    config = QatConfig.model_validate_json(json.dumps(tree))
    pass_ = Qat()
    pass_.requires(config, parent, context)
    output = pass_.run(config, parent, out, context)
    pass_.ensures(config, parent, out, context)
    return out, output.summary, notes


def accuracy(folder):
    return evaluate_accuracy(load_module(folder), Blobs(), 32).accuracy


@pytest.mark.parametrize(
    ("observer", "target"),
    [
        (name, "onnxruntime")
        for name in ("min-max", "moving-average", "percentile", "entropy", "mse")
    ]
    + [("mse", "tensorrt")],
)
def test_every_observer_keeps_the_answers(parent, tmp_path, observer, target):
    calibration = {"data": "train", "num_samples": 32, "batch_size": 16, "observer": observer}
    out, summary, _ = quantized(parent, tmp_path, {"calibration": calibration, "target": target})
    assert accuracy(out) >= accuracy(parent.model) - 0.05
    layers = [one for one in load_module(out).modules() if isinstance(one, IntegerLayer)]
    assert summary["integer_layers"] == len(layers) == 19
    assert summary["folded_norms"] == 14
    outputs = [one for one in layers if one.output_grid is not None]
    signs = {one.input_grid.grid.nonnegative for one in layers if one.input_grid is not None}
    assert (
        (outputs, signs) == ([], {False})
        if target == "tensorrt"
        else (outputs != [] and True in signs)
    )


def test_weights_have_a_scale_for_each_channel_that_holds_them(parent, tmp_path):
    out, _, _ = quantized(parent, tmp_path, {"weight_observer": "min-max"})
    for one in load_module(out).modules():
        if isinstance(one, IntegerLayer):
            largest = one.layer.weight.detach().flatten(1).abs().amax(dim=1)
            torch.testing.assert_close(one.weight_grid.scale, largest / 127, rtol=1e-4, atol=1e-9)


def test_fewer_bits_cost_more_and_training_wins_it_back(parent, tmp_path):
    coarse, _, _ = quantized(
        parent,
        tmp_path / "coarse",
        {"weight_bits": 4, "weight_observer": "min-max", "bias_correction": False},
    )
    tuning = {
        "validation": None,
        "training": {"steps": 30, "batch_size": 16, "learning_rate": 0.001},
    }
    tuned, summary, _ = quantized(
        parent,
        tmp_path / "tuned",
        {
            "weight_bits": 4,
            "weight_observer": "min-max",
            "bias_correction": False,
            "fine_tuning": tuning,
        },
    )
    batch = {"image": torch.from_numpy(Blobs().batch(np.arange(64))["image"])}

    def distance(folder):
        with torch.no_grad():
            return (
                load_module(folder)(**batch)["logits"]
                - load_module(parent.model)(**batch)["logits"]
            ).norm()

    eight, _, _ = quantized(parent, tmp_path / "eight")
    assert distance(eight) < 0.5 * distance(coarse)
    assert distance(tuned) < 0.8 * distance(coarse)
    assert summary["steps"] == 30


@pytest.mark.parametrize("scales", ["fixed", "learned", "observed"])
def test_scales_change_as_told_and_only_till_they_are_frozen(parent, tmp_path, scales):
    tuning = {
        "validation": None,
        "scales": scales,
        "training": {"steps": 4, "batch_size": 16, "learning_rate": 0.01},
    }

    def all_scales(folder):
        modules = [one for one in load_module(folder).modules() if isinstance(one, Rounding)]
        return torch.cat([one.scale.detach().flatten() for one in modules])

    before = all_scales(quantized(parent, tmp_path / "plain")[0])
    after = all_scales(quantized(parent, tmp_path / "tuned", {"fine_tuning": tuning})[0])
    assert torch.equal(before, after) == (scales == "fixed")
    once = {"fine_tuning": tuning | {"freeze_after": 0.2}}  # after the first of four steps
    frozen = all_scales(quantized(parent, tmp_path / "frozen", once)[0])
    assert torch.equal(before, frozen) == (scales == "fixed")
    assert not torch.equal(frozen, after) or scales == "fixed"


@pytest.mark.parametrize("scales", ["learned", "observed"])
def test_a_killed_training_ends_in_the_same_bytes(parent, tmp_path, scales):
    training = {"steps": 8, "batch_size": 16, "checkpoint_every": 1, "average": 0.9}
    fields = {
        "fine_tuning": {
            "validation": None,
            "scales": scales,
            "freeze_after": 0.7,
            "training": training,
        }
    }
    whole, summary, _ = quantized(parent, tmp_path / "whole", fields)
    for moment in (("step", 5), ("step", 7)):  # before and after the scales are frozen
        with pytest.raises(Killed):
            quantized(parent, tmp_path / f"killed-{moment[1]}", fields, moment)
        resumed, told, notes = quantized(parent, tmp_path / f"killed-{moment[1]}", fields)
        assert (resumed / "model.safetensors").read_bytes() == (
            whole / "model.safetensors"
        ).read_bytes()
        assert told == summary
        assert not notes


def spoilt(parent, folder, *names):
    """The parent with layers of which one input channel is so large that a grid for all of them holds nothing of the others."""
    module = load_module(parent.model)
    for name in names:
        norm = module.get_submodule(name.replace("project", "filter") + "_norm")
        with (
            torch.no_grad()
        ):  # nearly the same function: what is 3000 times as large is read as much less
            norm.weight[0] *= 3000
            norm.bias[0] *= 3000
            module.get_submodule(name).weight[:, 0] /= 3000
    return saved(module, parent, folder)


def saved(module, parent, folder):
    config = CLASSIFIER.Config.model_validate_json(
        json.dumps(json.loads((parent.model / "config.json").read_text())["config"])
    )
    config = replace_fields(config, {("vision_activation",): "hardswish"})
    CLASSIFIER.save(module, config, folder)
    return SimpleNamespace(model=folder, manifest=SimpleNamespace(id="cd34", kind="torch"))


def test_the_layer_that_cannot_be_rounded_stays_in_float(parent, tmp_path):
    bad = spoilt(parent, tmp_path / "bad", "vision.blocks.1.project")
    keep = {
        "data": "train",
        "metric": "agreement",
        "max_drop": 0.02,
        "at_most": 6,
        "num_samples": 32,
    }
    out, summary, _ = quantized(bad, tmp_path, {"keep_float": keep})
    quantization = read_quantization(out)
    ranked = [one["layer"] for one in summary["sensitivity"]]
    assert ranked[0] in {"vision.blocks.1.project", "vision.blocks.1.filter"}
    assert [one["divergence"] for one in summary["sensitivity"]] == sorted(
        (one["divergence"] for one in summary["sensitivity"]), reverse=True
    )
    found = summary["keep_float"]["found"]
    assert len(quantization.kept_float) == len(found) - 1
    assert found[-1] >= 0.98
    assert all(one < 0.98 for one in found[:-1])
    assert all("by divergence" in why for why in quantization.kept_float.values())
    assert set(quantization.kept_float) == set(ranked[: len(quantization.kept_float)])
    assert set(quantization.layers) | set(quantization.kept_float) == set(ranked)


def test_layers_can_be_excluded_by_pattern(parent, tmp_path):
    out, summary, _ = quantized(parent, tmp_path, {"exclude": ["head", "vision.blocks.0.*"]})
    quantization = read_quantization(out)
    assert {"head", "vision.blocks.0.expand", "vision.blocks.0.filter"} <= set(
        quantization.kept_float
    )
    assert "vision.blocks.0.filter" in quantization.folded
    assert summary["float_layers"] == len(quantization.kept_float) == 4
    with pytest.raises(
        RequirementError,
        match=r"names no layer of this model: tail, x\.\*\n.*its layers are vision.stem",
    ):
        quantized(parent, tmp_path, {"exclude": ["tail", "head", "x.*"]})
    with pytest.raises(RequirementError, match="no linear or convolutional layer is left"):
        quantized(parent, tmp_path, {"exclude": ["*"]})


def test_a_table_is_used_again_and_bound_to_its_model(parent, tmp_path):
    first, _, _ = quantized(parent, tmp_path / "first", {"bias_correction": False})
    table = SimpleNamespace(model=first)
    calibration = {"data": "blank", "table": "first"}  # its samples would give other ranges
    fields = {"calibration": calibration, "bias_correction": False}
    again, _, _ = quantized(parent, tmp_path / "again", fields, artifacts={"table": table})
    for name in ("model.safetensors", TABLE):
        assert (again / name).read_bytes() == (first / name).read_bytes()
    stranger = SimpleNamespace(
        model=parent.model, manifest=SimpleNamespace(id="ef56", kind="torch")
    )
    with pytest.raises(RequirementError, match="belongs to another model"):
        quantized(
            stranger, tmp_path / "other", {"calibration": calibration}, artifacts={"table": table}
        )


def test_a_table_tells_what_was_seen(parent, tmp_path):
    out, _, _ = quantized(parent, tmp_path)
    table = json.loads((out / TABLE).read_text())
    assert table["model"] == "ab12"
    assert table["num_samples"] == 32
    stem = table["tensors"]["vision.stem:input"]
    assert stem["values"] == 32 * 3 * 16 * 16
    assert -1 <= stem["minimum"] < stem["maximum"] <= 1
    assert table["tensors"]["vision.blocks.0.filter:input"]["minimum"] == 0.0


def test_samples_that_say_nothing_are_refused(parent, tmp_path):
    with pytest.raises(RequirementError, match=r"vision\.stem: its input is always -1"):
        quantized(parent, tmp_path, {"calibration": {"data": "blank"}})


def test_a_layer_that_no_sample_reaches_is_named():
    from calibration.table import CalibrationTable
    from passes.qat.calibrating import check_table

    table = CalibrationTable(
        model="a", observer="mse", bits=8, num_samples=1, samples_sha256="0" * 64, tensors={}
    )
    config = QatConfig.model_validate_json('{"calibration": {"data": "train"}}')
    with pytest.raises(RequirementError, match="head: no sample reaches it"):
        check_table(table, ["head"], config, torch.nn.Module())


def test_activations_that_are_not_finite_are_named(parent, tmp_path):
    module = load_module(parent.model)
    with torch.no_grad():
        module.get_submodule("vision.blocks.2.filter").weight.mul_(1e38).mul_(100.0)
        module.get_submodule("vision.blocks.2.filter").weight.clamp_(-3e38, 3e38)
    bad = saved(module, parent, tmp_path / "bad")
    with pytest.raises(
        NumericalError, match=r"activations are not finite:\n    vision\.blocks\.2\."
    ):
        quantized(bad, tmp_path)


def test_no_samples_are_told(parent, tmp_path):
    with pytest.raises(DataError, match="data set 'empty' is empty"):
        quantized(parent, tmp_path, {"calibration": {"data": "empty"}})


def test_keep_float_says_how_far_it_got(parent, tmp_path):
    bad = spoilt(
        parent, tmp_path / "bad", *(f"vision.blocks.{number}.project" for number in range(4))
    )
    keep = {
        "data": "train",
        "metric": "agreement",
        "max_drop": 0.001,
        "at_most": 1,
        "num_samples": 32,
    }
    fields = {"keep_float": keep, "weight_bits": 4, "weight_observer": "min-max"}
    with pytest.raises(
        RequirementError, match=r"cannot hold its limit: agreement .* with 1 layers in float"
    ):
        quantized(bad, tmp_path, fields)
    tuning = {"validation": None, "training": {"steps": 1, "batch_size": 16}}
    _, _, notes = quantized(bad, tmp_path / "tuned", fields | {"fine_tuning": tuning})
    assert any("training follows" in note for note in notes)


def test_corrected_biases_bring_back_the_mean_of_each_layer(parent, tmp_path):
    out, _, _ = quantized(
        parent, tmp_path, {"bias_correction": False, "weight_bits": 4, "target": "tensorrt"}
    )
    teacher, model = load_module(parent.model), load_module(out)
    quantization = read_quantization(out)
    fold(teacher, {name: one.norm for name, one in quantization.layers.items() if one.norm})
    batch = {"image": torch.from_numpy(Blobs().batch(np.arange(64))["image"])}

    def means(one):
        found = {}
        handles = [
            one.get_submodule(name).register_forward_hook(
                lambda _, x, y, name=name: found.update(
                    {name: y.movedim(-1 if y.ndim == 2 else 1, 0).flatten(1).mean(dim=1)}
                )
            )
            for name in quantization.layers
        ]
        with torch.no_grad():
            one(**batch)
        for handle in handles:
            handle.remove()
        return found

    wanted, before = means(teacher), means(model)
    assert correct_biases(model, teacher, batch) == len(quantization.layers)
    for name, mean in means(model).items():
        torch.testing.assert_close(mean, wanted[name], atol=1e-4, rtol=1e-3)
        assert (before[name] - wanted[name]).norm() > 10 * (mean - wanted[name]).norm(), name


def test_labels_are_asked_for_where_they_count(parent, tmp_path):
    keep = {"data": "unlabelled", "metric": "agreement"}
    calibration = {"data": "unlabelled", "num_samples": 8}
    quantized(parent, tmp_path, {"calibration": calibration, "keep_float": keep})
    with pytest.raises(DataError, match="data set 'unlabelled' has no labels"):
        quantized(parent, tmp_path, {"keep_float": keep | {"metric": "top1"}})
    tuning = {"train": "third", "validation": None, "training": {"steps": 1, "batch_size": 16}}
    with pytest.raises(DataError, match="label 2 in the data, but the model tells 2 apart"):
        quantized(parent, tmp_path, {"fine_tuning": tuning})


def test_values_from_zero_have_a_bound_of_their_own(parent, tmp_path):
    out, _, _ = quantized(parent, tmp_path)
    tensors = json.loads((out / TABLE).read_text())["tensors"]
    assert tensors["vision.stem:input"]["bound_from_zero"] is None
    inside = tensors["vision.blocks.0.filter:input"]
    assert inside["bound_from_zero"] >= inside["bound"]  # twice as fine: it can afford to clip less
    layer = load_module(out).get_submodule("vision.blocks.0.filter")
    assert layer.input_grid.scale.item() == pytest.approx(inside["bound_from_zero"] / 255, rel=1e-5)


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"activation_bits": 4}, "no kernels for 4-bit activations"),
        (
            {"calibration": {"data": "train", "table": "first", "observer": "mse"}},
            "`table` brings its bounds with it: leave out observer",
        ),
    ],
)
def test_fields_that_do_not_fit_are_told_by_the_config(fields, told):
    with pytest.raises(ValueError, match=told):
        QatConfig.model_validate_json(json.dumps({"calibration": {"data": "train"}} | fields))


def test_a_partial_recipe_keeps_its_small_steps():
    tree = {"calibration": {"data": "train"}, "fine_tuning": {"training": {"steps": 7}}}
    training = QatConfig.model_validate_json(json.dumps(tree)).fine_tuning.training
    assert (training.steps, training.learning_rate) == (7, 3e-5)


def test_weights_next_to_nothing_have_a_scale(parent, tmp_path):
    module = load_module(parent.model)
    with torch.no_grad():
        module.head.weight[0] = 1e-44
    bad = saved(module, parent, tmp_path / "bad")
    out, _, _ = quantized(bad, tmp_path)
    assert load_module(out).get_submodule("head").weight_grid.is_sound()
