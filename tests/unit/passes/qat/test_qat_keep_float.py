"""Layers that are kept in float, to limit the drop of a metric."""

import pytest

from compressor.errors import RequirementError
from compressor.models.quantized.quantization import read_quantization
from tests.support.qat import add_outlier_channels, run_qat


def test_the_most_sensitive_layer_stays_in_float(parent, tmp_path):
    variant = add_outlier_channels(parent, tmp_path / "variant", "vision.blocks.1.project")
    keep_float = {
        "data": "train",
        "metric": "agreement",
        "max_drop": 0.02,
        "max_layers": 6,
        "num_samples": 32,
    }
    out, summary, _ = run_qat(variant, tmp_path, {"keep_float": keep_float})
    quantization = read_quantization(out)
    ranked = [row["layer"] for row in summary["sensitivity"]]
    divergences = [row["divergence"] for row in summary["sensitivity"]]
    assert ranked[0] in {"vision.blocks.1.project", "vision.blocks.1.filter"}
    assert divergences == sorted(divergences, reverse=True)
    metrics = summary["keep_float"]["found"]
    float_layers = quantization.kept_float
    assert len(float_layers) == len(metrics) - 1
    assert metrics[-1] >= 0.98
    assert all(metric < 0.98 for metric in metrics[:-1])
    assert all("by divergence" in reason for reason in float_layers.values())
    assert set(float_layers) == set(ranked[: len(float_layers)])
    assert set(quantization.layers) | set(float_layers) == set(ranked)


def test_a_limit_that_cannot_be_met_is_an_error_unless_training_follows(parent, tmp_path):
    names = [f"vision.blocks.{number}.project" for number in range(4)]
    variant = add_outlier_channels(parent, tmp_path / "variant", *names)
    keep_float = {
        "data": "train",
        "metric": "agreement",
        "max_drop": 0.001,
        "at_most": 1,  # the name of `max_layers` before
        "num_samples": 32,
    }
    fields = {"keep_float": keep_float, "weight_bits": 4, "weight_observer": "min-max"}
    with pytest.raises(
        RequirementError, match=r"cannot meet its limit: agreement .* with 1 layers in float"
    ):
        run_qat(variant, tmp_path, fields)
    tuning = {"validation": None, "training": {"steps": 1, "batch_size": 16}}
    _, _, notes = run_qat(variant, tmp_path / "tuned", fields | {"fine_tuning": tuning})
    assert any("before fine-tuning, agreement" in note for note in notes)


def test_agreement_needs_no_labels(parent, tmp_path):
    keep_float = {"data": "unlabelled", "metric": "agreement"}
    calibration = {"data": "unlabelled", "num_samples": 8}
    run_qat(parent, tmp_path, {"calibration": calibration, "keep_float": keep_float})
