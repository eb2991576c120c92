"""Config of the training loop: learning rate, invalid values, fields without effect, old names."""

import pytest
from pydantic import ValidationError

from passes.common.config import TrainingConfig
from passes.train.config import TrainConfig


@pytest.mark.parametrize(
    ("schedule", "last"), [("cosine", 0.05), ("linear", 0.05), ("constant", 1.0)]
)
def test_the_learning_rate_rises_in_the_warm_up_and_then_decays(schedule, last):
    fields = {} if schedule == "constant" else {"min_lr_ratio": 0.05}
    config = TrainingConfig(
        steps=100, learning_rate=1.0, schedule=schedule, warmup_ratio=0.1, **fields
    )
    rates = [config.rate(step) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == rates[9] == 1.0
    assert rates[9:] == sorted(rates[9:], reverse=True)
    assert rates[-1] == pytest.approx(last, abs=0.02)


@pytest.mark.parametrize(
    "fields",
    [{"steps": 0}, {"steps": "7"}, {"learning_rate": 0.0}, {"warmup_ratio": 2.0}, {"step": 1}],
)
def test_invalid_fields_are_an_error(fields):
    with pytest.raises(ValidationError):
        TrainingConfig(**fields)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"schedule": "constant", "min_lr_ratio": 0.1},
            "`min_lr_ratio` has no effect with `schedule: constant`",
        ),
        (
            {"warmup_ratio": 1, "schedule": "linear", "min_lr_ratio": 0.1},
            "`schedule` has no effect with `warmup_ratio: 1`.*`min_lr_ratio` has no effect",
        ),
        ({"patience": 3}, "`patience` counts evaluations: set `evaluate_every`"),
        (
            {"schedule": "constant", "min_lr_ratio": 0.0, "patience": 3},
            r"`min_lr_ratio` has no effect.*; `patience` counts evaluations",
        ),
    ],
)
def test_fields_without_effect_are_an_error(fields, message):
    with pytest.raises(ValidationError, match=message):
        TrainingConfig(**fields)


def test_patience_without_a_validation_set_is_an_error():
    training = TrainingConfig(patience=3, evaluate_every=5)
    with pytest.raises(ValidationError, match=r"`training.patience` has no effect"):
        TrainConfig(validation=None, training=training)
    assert TrainConfig(validation="validation", training=training).training == training


def test_names_before_the_renaming_are_aliases():
    old = TrainingConfig.model_validate_json('{"average": 0.9, "warmup": 0.2, "final": 0.1}')
    assert old == TrainingConfig(ema_decay=0.9, warmup_ratio=0.2, min_lr_ratio=0.1)
    assert old.model_fields_set == {"ema_decay", "warmup_ratio", "min_lr_ratio"}
    with pytest.raises(ValidationError, match="average"):
        TrainingConfig.model_validate_json('{"average": 0.9, "ema_decay": 0.9}')
