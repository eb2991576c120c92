"""The training loop: learning, reproducibility, resuming after a kill, and errors."""

from contextlib import contextmanager
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from compressor.data.contract import Dataset
from compressor.errors import NumericalError, RequirementError
from passes.common import training
from passes.common.config import TrainingConfig
from passes.common.task import Callbacks, RunSettings, Task
from passes.common.training import CHECKPOINT, fit
from tests.support.training import Killed


class Points(Dataset):
    """Points with the index of their largest coordinate as label, jittered by epoch.

    The sign of the last coordinate is a slice. The indices of all batches are recorded.
    """

    input_names = ("x",)
    label_name = "label"

    def __init__(self, count=200, seed=0):
        self.x = np.random.default_rng(seed).normal(size=(count, 4)).astype(np.float32)
        self.label = self.x[:, :3].argmax(axis=1)
        self.batches_drawn = []

    def __len__(self):
        return len(self.x)

    def batch(self, indices, epoch=0):
        self.batches_drawn.append(indices.copy())
        jitter = (
            np.random.default_rng([epoch, *indices])
            .normal(size=(len(indices), 4))
            .astype(np.float32)
        )
        return {"x": self.x[indices] + 0.01 * epoch * jitter, "label": self.label[indices]}

    def slices(self):
        return {"side": np.where(self.x[:, 3] > 0, "right", "left")}


class Net(nn.Module):
    """Two linear layers, a batch normalization and dropout."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Sequential(
            nn.Linear(4, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.1), nn.Linear(16, 3)
        )

    def forward(self, x):
        return {"logits": self.inner(x)}


def label_loss(outputs, batch, progress):
    return {"label": nn.functional.cross_entropy(outputs["logits"], batch["label"])}


TASK = Task(Points(), label_loss)
FULL = TrainingConfig(
    steps=20,
    batch_size=32,
    learning_rate=0.01,
    ema_decay=0.9,
    evaluate_every=5,
    checkpoint_every=3,
    patience=50,
)


def train(folder, config, task=TASK, callbacks=None, *, seed=0):
    """Train a new ``Net``, and return its weights and the result."""
    torch.manual_seed(1)
    net = Net()
    result = fit(net, task, config, RunSettings(seed, folder), callbacks)
    return net.state_dict(), result


def equal(first, second):
    return all(torch.equal(first[name], second[name]) for name in first)


def kill_at(step):
    def progress(done, total, metrics):
        if done == step:
            raise Killed

    return progress


def weights_from_accuracy(step, evaluation):
    return np.where(np.arange(200) % 2, 1.0, 1.0 + evaluation.accuracy)


def test_a_model_learns(tmp_path):
    config = TrainingConfig(steps=200, batch_size=32, learning_rate=0.01)
    _, result = train(tmp_path, config, replace(TASK, validation=Points(300, seed=1)))
    assert result.steps == result.kept_step == 200
    assert result.history[-1]["accuracy"] > 0.85
    assert set(result.history[-1]["slices"]) == {"side=left", "side=right"}


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(tmp_path):
    first, _ = train(tmp_path / "a", FULL)
    second, _ = train(tmp_path / "b", FULL)
    other_seed, _ = train(tmp_path / "c", FULL, seed=1)
    assert equal(first, second)
    assert not equal(first, other_seed)


@pytest.mark.parametrize("killed_at", [1, 7, 10, 19])
def test_a_killed_run_resumes_to_the_same_weights(tmp_path, killed_at):
    def run(name, progress=lambda *_: None):
        task = replace(TASK, validation=Points(60, seed=1), extra=nn.Linear(2, 2))
        callbacks = Callbacks(progress, on_evaluation=weights_from_accuracy)
        return train(tmp_path / name, FULL, task, callbacks)

    torch.manual_seed(0)
    whole, expected = run("whole")
    with pytest.raises(Killed):
        run("killed", kill_at(killed_at))
    torch.manual_seed(99)
    resumed, result = run("killed")
    assert equal(whole, resumed)
    assert result.history == expected.history
    assert result.summary() == expected.summary()
    assert result.resumed_from == ((killed_at - 1) // 3 * 3 or None)


@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "foreign"])
def test_an_unusable_checkpoint_is_noted_and_training_starts_again(tmp_path, damage):
    whole, _ = train(tmp_path / "whole", FULL)
    seed = 5 if damage == "foreign" else 0
    with pytest.raises(Killed):
        train(tmp_path, FULL, callbacks=Callbacks(kill_at(8)), seed=seed)
    path = tmp_path / CHECKPOINT
    content = bytearray(path.read_bytes())
    if damage == "flip":
        content[len(content) // 2] ^= 1
    path.write_bytes(content[: {"cut": -9, "empty": 0}.get(damage)])
    notes = []
    resumed, result = train(tmp_path, FULL, callbacks=Callbacks(note=notes.append))
    assert result.resumed_from is None
    assert equal(whole, resumed)
    assert len(notes) == 1
    assert ("another run" if damage == "foreign" else "damaged") in notes[0]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_is_an_error_with_step_and_term(tmp_path, value):
    def objective(outputs, batch, progress):
        terms = label_loss(outputs, batch, progress)
        return terms | {"soft": terms["label"] * (value if progress > 0.5 else 1.0)}

    with pytest.raises(NumericalError, match=rf"step 12: label [0-9.]+, soft {value}"):
        train(tmp_path, FULL, replace(TASK, objective=objective))


def test_a_gradient_that_is_not_finite_is_an_error(tmp_path):
    def objective(outputs, batch, progress):
        return {"root": (outputs["logits"] * 0).sum().sqrt()}

    with pytest.raises(NumericalError, match="gradient is not finite at step 1"):
        train(tmp_path, FULL, replace(TASK, objective=objective))


def test_early_stopping_keeps_the_best_weights(tmp_path):
    config = TrainingConfig(
        steps=400, batch_size=32, learning_rate=0.05, evaluate_every=5, patience=2
    )
    _, result = train(tmp_path, config, replace(TASK, validation=Points(100, seed=1)))
    assert result.stopped_early
    assert result.steps == result.kept_step + 10
    accuracies = {entry["step"]: entry["accuracy"] for entry in result.history}
    assert accuracies[result.kept_step] == max(accuracies.values())


def test_sampling_weights_change_the_samples_drawn_after_an_evaluation(tmp_path):
    dataset = Points()
    only_first = np.zeros(200)
    only_first[:10] = 1.0
    task = Task(dataset, label_loss, validation=Points(20, seed=1))
    config = TrainingConfig(steps=10, batch_size=20, evaluate_every=5)
    callbacks = Callbacks(on_evaluation=lambda step, evaluation: only_first)
    fit(Net(), task, config, RunSettings(0, tmp_path), callbacks)
    assert np.concatenate(dataset.batches_drawn[:5]).max() > 10
    assert np.concatenate(dataset.batches_drawn[5:]).max() < 10


def test_extra_modules_are_trained_too(tmp_path):
    extra = nn.Linear(3, 3)
    before = extra.weight.clone()

    def objective(outputs, batch, progress):
        return {"label": nn.functional.cross_entropy(extra(outputs["logits"]), batch["label"])}

    train(tmp_path, FULL, replace(TASK, objective=objective, extra=extra))
    assert not torch.equal(before, extra.weight)


def test_global_settings_are_restored(tmp_path):
    train(tmp_path, FULL)
    assert not torch.are_deterministic_algorithms_enabled()


def test_steps_reuse_the_memory_of_the_step_before(tmp_path, monkeypatch):
    log = []

    @contextmanager
    def recorded():
        log.append("start")
        yield
        log.append("end")

    monkeypatch.setattr(training, "reused_memory", recorded)
    train(
        tmp_path,
        TrainingConfig(steps=2),
        callbacks=Callbacks(before_step=lambda _: log.append("step")),
    )
    assert log == ["start", "step", "step", "end"]


def test_stretches_take_the_steps_of_one_training(tmp_path):
    config = TrainingConfig(steps=20, batch_size=32, learning_rate=0.01)
    whole, parts, rates = Points(), Points(), {"whole": [], "parts": []}

    def record(name, done, total, metrics):
        rates[name].append((done, total, metrics["learning_rate"]))

    def train_on(dataset, name, stretch=None):
        torch.manual_seed(1)
        settings = RunSettings(0, tmp_path / name / str(stretch), stretch)
        callbacks = Callbacks(partial(record, name))
        return fit(Net(), Task(dataset, label_loss), config, settings, callbacks)

    train_on(whole, "whole")
    results = [train_on(parts, "parts", range(*ends)) for ends in ((0, 7), (7, 8), (8, 20))]
    assert [result.steps for result in results] == [7, 8, 20]
    assert not any(result.stopped_early for result in results)
    assert rates["parts"] == rates["whole"]
    np.testing.assert_array_equal(np.stack(parts.batches_drawn), np.stack(whole.batches_drawn))


def test_frozen_batch_norms_keep_their_statistics_and_train_their_scale(tmp_path):
    torch.manual_seed(1)
    before = Net().state_dict()
    config = {"steps": 6, "batch_size": 32, "learning_rate": 0.05, "evaluate_every": 2}
    task = replace(TASK, validation=Points())
    frozen, _ = train(tmp_path / "a", TrainingConfig(**config, batch_norm="freeze"), task)
    learned, _ = train(tmp_path / "b", TrainingConfig(**config), task)
    for name in ("running_mean", "running_var"):
        assert torch.equal(frozen[f"inner.1.{name}"], before[f"inner.1.{name}"])
        assert not torch.equal(learned[f"inner.1.{name}"], before[f"inner.1.{name}"])
    assert not torch.equal(frozen["inner.1.weight"], before["inner.1.weight"])


def test_batch_norm_settings_without_a_batch_norm_are_an_error(tmp_path):
    config = TrainingConfig(steps=1, batch_norm="freeze")
    with pytest.raises(RequirementError, match=r"`training.batch_norm` has no effect"):
        fit(nn.Linear(4, 3), TASK, config, RunSettings(0, tmp_path))
