"""The training loop: it learns, it repeats bit for bit, it goes on after a kill, it says what is wrong."""

import numpy as np
import pytest
import torch
from torch import nn

from compressor.data.contract import Dataset
from compressor.errors import NumericalError
from passes.common.config import TrainingConfig
from passes.common.training import CHECKPOINT, fit


class Points(Dataset):
    """Which of three lines is a point nearest to? Jittered by epoch; ``side`` is a slice."""

    input_names = ("x",)
    label_name = "label"

    def __init__(self, count=200, seed=0):
        self.x = np.random.default_rng(seed).normal(size=(count, 4)).astype(np.float32)
        self.label = self.x[:, :3].argmax(axis=1)
        self.seen = []

    def __len__(self):
        return len(self.x)

    def batch(self, indices, epoch=0):
        self.seen.append(indices.copy())
        jitter = (
            np.random.default_rng([epoch, *indices])
            .normal(size=(len(indices), 4))
            .astype(np.float32)
        )
        return {"x": self.x[indices] + 0.01 * epoch * jitter, "label": self.label[indices]}

    def slices(self):
        return {"side": np.where(self.x[:, 3] > 0, "right", "left")}


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Sequential(
            nn.Linear(4, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.1), nn.Linear(16, 3)
        )

    def forward(self, x):
        return {"logits": self.inner(x)}


def label_loss(outputs, batch, fraction):
    return {"label": nn.functional.cross_entropy(outputs["logits"], batch["label"])}


def train(folder, config, *, seed=0, objective=label_loss, **options):
    torch.manual_seed(1)
    net = Net()
    result = fit(
        net, Points(), config, seed=seed, objective=objective, checkpoint_dir=folder, **options
    )
    return net.state_dict(), result


def same(first, second):
    return all(torch.equal(first[name], second[name]) for name in first)


FULL = TrainingConfig(
    steps=20,
    batch_size=32,
    learning_rate=0.01,
    average=0.9,
    evaluate_every=5,
    checkpoint_every=3,
    patience=50,
)


class Killed(BaseException):
    pass


def kill_at(step):
    def progress(done, total, figures):
        if done == step:
            raise Killed

    return progress


def feedback(step, evaluation):
    return np.where(np.arange(200) % 2, 1.0, 1.0 + evaluation.accuracy)


def test_it_learns(tmp_path):
    config = TrainingConfig(steps=200, batch_size=32, learning_rate=0.01)
    _, result = train(tmp_path, config, validation=Points(300, seed=1))
    assert result.steps == result.kept_step == 200
    assert result.history[-1]["accuracy"] > 0.85
    assert set(result.history[-1]["slices"]) == {"side=left", "side=right"}


def test_the_same_seed_gives_the_same_bytes_and_another_does_not(tmp_path):
    first, _ = train(tmp_path / "a", FULL)
    second, _ = train(tmp_path / "b", FULL)
    other, _ = train(tmp_path / "c", FULL, seed=1)
    assert same(first, second)
    assert not same(first, other)


@pytest.mark.parametrize("killed_at", [1, 7, 10, 19])
def test_a_killed_run_ends_in_the_same_bytes(tmp_path, killed_at):
    options = {"validation": Points(60, seed=1), "on_evaluation": feedback}
    torch.manual_seed(0)
    whole, expected = train(tmp_path / "whole", FULL, extra=nn.Linear(2, 2), **options)
    with pytest.raises(Killed):
        train(
            tmp_path / "killed", FULL, extra=nn.Linear(2, 2), progress=kill_at(killed_at), **options
        )
    torch.manual_seed(99)
    resumed, result = train(tmp_path / "killed", FULL, extra=nn.Linear(2, 2), **options)
    assert same(whole, resumed)
    assert result.history == expected.history
    assert result.resumed_from == ((killed_at - 1) // 3 * 3 or None)


@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "foreign"])
def test_a_checkpoint_that_cannot_be_used_is_told_and_left(tmp_path, damage):
    whole, _ = train(tmp_path / "whole", FULL)
    seed = 5 if damage == "foreign" else 0
    with pytest.raises(Killed):
        train(tmp_path, FULL, seed=seed, progress=kill_at(8))
    path = tmp_path / CHECKPOINT
    content = bytearray(path.read_bytes())
    if damage == "flip":
        content[len(content) // 2] ^= 1
    path.write_bytes(content[: {"cut": -9, "empty": 0}.get(damage)])
    notes = []
    resumed, result = train(tmp_path, FULL, note=notes.append)
    assert result.resumed_from is None
    assert same(whole, resumed)
    assert len(notes) == 1
    assert ("another run" if damage == "foreign" else "damaged") in notes[0]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_names_step_and_term(tmp_path, value):
    def objective(outputs, batch, fraction):
        terms = label_loss(outputs, batch, fraction)
        return terms | {"soft": terms["label"] * (value if fraction > 0.5 else 1.0)}

    with pytest.raises(NumericalError, match=rf"step 12: label [0-9.]+, soft {value}"):
        train(tmp_path, FULL, objective=objective)


def test_a_gradient_that_is_not_finite_is_told(tmp_path):
    def objective(outputs, batch, fraction):
        return {"root": (outputs["logits"] * 0).sum().sqrt()}

    with pytest.raises(NumericalError, match="gradient is not finite at step 1"):
        train(tmp_path, FULL, objective=objective)


def test_early_stop_keeps_the_best(tmp_path):
    config = TrainingConfig(
        steps=400, batch_size=32, learning_rate=0.05, evaluate_every=5, patience=2
    )
    _, result = train(tmp_path, config, validation=Points(100, seed=1))
    assert result.stopped_early
    assert result.steps == result.kept_step + 10
    accuracies = {entry["step"]: entry["accuracy"] for entry in result.history}
    assert accuracies[result.kept_step] == max(accuracies.values())


def test_feedback_changes_what_is_drawn(tmp_path):
    dataset = Points()
    net = Net()
    only_first = np.zeros(200)
    only_first[:10] = 1.0
    fit(
        net,
        dataset,
        TrainingConfig(steps=10, batch_size=20, evaluate_every=5),
        seed=0,
        objective=label_loss,
        checkpoint_dir=tmp_path,
        validation=Points(20, seed=1),
        on_evaluation=lambda step, evaluation: only_first,
    )
    assert np.concatenate(dataset.seen[:5]).max() > 10
    assert np.concatenate(dataset.seen[5:]).max() < 10


def test_extra_modules_learn_too(tmp_path):
    extra = nn.Linear(3, 3)
    before = extra.weight.clone()

    def objective(outputs, batch, fraction):
        return {"label": nn.functional.cross_entropy(extra(outputs["logits"]), batch["label"])}

    train(tmp_path, FULL, objective=objective, extra=extra)
    assert not torch.equal(before, extra.weight)


def test_settings_are_left_as_they_were(tmp_path):
    train(tmp_path, FULL)
    assert not torch.are_deterministic_algorithms_enabled()


def test_stretches_take_the_steps_of_one_training(tmp_path):
    config = TrainingConfig(steps=20, batch_size=32, learning_rate=0.01)
    whole, parts, rates = Points(), Points(), {"whole": [], "parts": []}

    def train_on(dataset, name, stretch=None):
        torch.manual_seed(1)
        remember = lambda done, total, figures: rates[name].append(  # noqa: E731
            (done, total, figures["learning_rate"])
        )
        folder = tmp_path / name / str(stretch)
        return fit(
            Net(),
            dataset,
            config,
            seed=0,
            objective=label_loss,
            checkpoint_dir=folder,
            progress=remember,
            stretch=stretch,
        )

    train_on(whole, "whole")
    results = [train_on(parts, "parts", range(*ends)) for ends in ((0, 7), (7, 8), (8, 20))]
    assert [result.steps for result in results] == [7, 8, 20]
    assert not any(result.stopped_early for result in results)
    assert rates["parts"] == rates["whole"]
    np.testing.assert_array_equal(np.stack(parts.seen), np.stack(whole.seen))


def test_frozen_batch_norms_keep_their_statistics_and_still_learn_their_scale(tmp_path):
    torch.manual_seed(1)
    before = Net().state_dict()
    config = {"steps": 6, "batch_size": 32, "learning_rate": 0.05, "evaluate_every": 2}
    frozen, _ = train(
        tmp_path / "a", TrainingConfig(**config, batch_norm="freeze"), validation=Points()
    )
    learnt, _ = train(tmp_path / "b", TrainingConfig(**config), validation=Points())
    for name in ("running_mean", "running_var"):
        assert torch.equal(frozen[f"inner.1.{name}"], before[f"inner.1.{name}"])
        assert not torch.equal(learnt[f"inner.1.{name}"], before[f"inner.1.{name}"])
    assert not torch.equal(frozen["inner.1.weight"], before["inner.1.weight"])
