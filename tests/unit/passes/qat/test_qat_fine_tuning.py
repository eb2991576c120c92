"""Quantization-aware training: accuracy, scales, resuming, and errors in the data."""

import numpy as np
import pytest
import torch

from compressor.errors import DataError, RequirementError
from compressor.models.checkpoint.loading import load_module
from compressor.models.quantized.fake_quantization import FakeQuantizer
from tests.support.qat import run_qat
from tests.support.training import Blobs, Killed


def test_fewer_bits_lose_accuracy_and_training_recovers_it(parent, tmp_path):
    fields = {"weight_bits": 4, "weight_observer": "min-max", "bias_correction": False}
    training = {"steps": 30, "batch_size": 16, "learning_rate": 0.001}
    tuning = {"validation": None, "training": training}
    coarse, _, _ = run_qat(parent, tmp_path / "coarse", fields)
    tuned, summary, _ = run_qat(parent, tmp_path / "tuned", fields | {"fine_tuning": tuning})
    eight_bits, _, _ = run_qat(parent, tmp_path / "eight")
    batch = {"image": torch.from_numpy(Blobs().batch(np.arange(64))["image"])}

    def logits(folder):
        with torch.no_grad():
            return load_module(folder)(**batch)["logits"]

    def distance(folder):
        return (logits(folder) - logits(parent.model)).norm()

    assert distance(eight_bits) < 0.5 * distance(coarse)
    assert distance(tuned) < 0.8 * distance(coarse)
    assert summary["steps"] == 30


def read_scales(folder):
    layers = load_module(folder).modules()
    scales = [layer.scale for layer in layers if isinstance(layer, FakeQuantizer)]
    return torch.cat([scale.detach().flatten() for scale in scales])


@pytest.mark.parametrize("scales", ["fixed", "learned", "observed"])
def test_scales_change_unless_they_are_fixed(parent, tmp_path, scales):
    training = {"steps": 4, "batch_size": 16, "learning_rate": 0.01}
    tuning = {"validation": None, "scales": scales, "training": training}
    before = read_scales(run_qat(parent, tmp_path / "plain")[0])
    after = read_scales(run_qat(parent, tmp_path / "tuned", {"fine_tuning": tuning})[0])
    assert torch.equal(before, after) == (scales == "fixed")


@pytest.mark.parametrize("scales", ["learned", "observed"])
def test_frozen_scales_no_longer_change(parent, tmp_path, scales):
    training = {"steps": 4, "batch_size": 16, "learning_rate": 0.01}
    tuning = {"validation": None, "scales": scales, "training": training}
    before = read_scales(run_qat(parent, tmp_path / "plain")[0])
    after = read_scales(run_qat(parent, tmp_path / "tuned", {"fine_tuning": tuning})[0])
    fields = {"fine_tuning": tuning | {"freeze_after": 0.2}}  # after the first of four steps
    frozen = read_scales(run_qat(parent, tmp_path / "frozen", fields)[0])
    assert not torch.equal(before, frozen)
    assert not torch.equal(frozen, after)


@pytest.mark.parametrize("scales", ["learned", "observed"])
def test_a_killed_training_resumes_to_the_same_bytes(parent, tmp_path, scales):
    training = {"steps": 8, "batch_size": 16, "checkpoint_every": 1, "ema_decay": 0.9}
    tuning = {"validation": None, "scales": scales, "freeze_after": 0.7, "training": training}
    fields = {"fine_tuning": tuning}
    whole, summary, _ = run_qat(parent, tmp_path / "whole", fields)
    for step in (5, 7):  # before and after the scales are frozen
        folder = tmp_path / f"killed-{step}"
        with pytest.raises(Killed):
            run_qat(parent, folder, fields, kill=("step", step))
        resumed, resumed_summary, notes = run_qat(parent, folder, fields)
        weights = resumed / "model.safetensors"
        assert weights.read_bytes() == (whole / "model.safetensors").read_bytes()
        assert resumed_summary == summary
        assert not notes


def test_a_label_that_the_model_lacks_is_an_error(parent, tmp_path):
    training = {"steps": 1, "batch_size": 16}
    tuning = {"train": "three-classes", "validation": None, "training": training}
    with pytest.raises(DataError, match="label 2 in the data, but the model has 2 classes"):
        run_qat(parent, tmp_path, {"fine_tuning": tuning})


def test_batch_norms_cannot_be_frozen_because_they_are_folded(parent, tmp_path):
    tuning = {"validation": None, "training": {"batch_norm": "freeze"}}
    with pytest.raises(RequirementError, match=r"`training.batch_norm` has no effect"):
        run_qat(parent, tmp_path, {"fine_tuning": tuning})
