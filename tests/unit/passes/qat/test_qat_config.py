"""Fields of ``qat`` that exclude each other or have no effect, and names from before a renaming."""

import json

import pytest

from passes.qat.config import QatConfig


def parse(**fields):
    tree = {"calibration": {"data": "train"}} | fields
    return QatConfig.model_validate_json(json.dumps(tree))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"activation_bits": 4}, "no kernels for 4-bit activations"),
        (
            {"calibration": {"data": "train", "table": "first", "observer": "mse"}},
            "`table` replaces the observation of ranges: leave out `observer`",
        ),
        (
            {"calibration": {"data": "train", "table": "first", "batch_size": 8}},
            "leave out `batch_size`",
        ),
        (
            {"calibration": {"data": "train", "percentile": 99.0}},
            "`percentile` has no effect with `observer: mse`",
        ),
        (
            {
                "calibration": {"data": "train", "table": "first", "num_samples": 8, "seed": 1},
                "bias_correction": False,
            },
            r"`calibration.num_samples` has no effect.*`calibration.seed` has no effect",
        ),
        (
            {"calibration": {"data": "train", "table": "first"}, "smoothing": 8},
            "`smoothing` changes the ranges in `calibration.table`",
        ),
        (
            {"quantize_embeddings": True, "target": "tensorrt"},
            "leave `quantize_embeddings` out",
        ),
        (
            {"fine_tuning": {"soft_weight": 0, "temperature": 2}},
            "`temperature` has no effect with `soft_weight: 0`",
        ),
        (
            {"fine_tuning": {"scales": "fixed", "freeze_after": 0.5}},
            "`freeze_after` has no effect with `scales: fixed`",
        ),
        (
            {
                "fine_tuning": {
                    "validation": None,
                    "training": {"patience": 2, "evaluate_every": 5},
                }
            },
            "`training.patience` has no effect with `validation: null`",
        ),
    ],
)
def test_fields_without_effect_are_an_error(fields, message):
    with pytest.raises(ValueError, match=message):
        parse(**fields)


def test_all_problems_are_listed_at_once():
    with pytest.raises(ValueError, match=r"4-bit activations.*`smoothing` changes"):
        parse(activation_bits=4, smoothing=8, calibration={"data": "train", "table": "first"})


def test_samples_are_used_beside_a_table_if_biases_are_corrected():
    calibration = {"data": "train", "table": "first", "num_samples": 8, "seed": 1}
    assert parse(calibration=calibration).calibration.num_samples == 8


def test_a_partial_training_config_keeps_the_low_learning_rate():
    training = parse(fine_tuning={"training": {"steps": 7}}).fine_tuning.training
    assert (training.steps, training.learning_rate) == (7, 3e-5)


def test_names_before_the_renaming_are_aliases():
    new = parse(
        ignore=["head"], quantize_embeddings=True, keep_float={"data": "train", "max_layers": 3}
    )
    old = parse(exclude=["head"], embeddings=True, keep_float={"data": "train", "at_most": 3})
    assert new == old
