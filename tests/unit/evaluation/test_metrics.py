import numpy as np
import pytest

from compressor.evaluation.metrics import METRICS

LOGITS = np.array([[2.0, 1.0, 0.0], [0.0, 0.0, 5.0], [1.0, 1.0, 0.0]], np.float32)
LABELS = np.array([0, 1, 0])


def test_top1_by_sample():
    assert METRICS["top1"].values(LOGITS, LABELS).tolist() == [1.0, 0.0, 1.0]


def test_cross_entropy_by_sample_in_nats():
    values = METRICS["cross_entropy"].values(LOGITS, LABELS)
    expected = [-np.log(np.exp(row[label]) / np.exp(row).sum()) for row, label in zip(LOGITS, LABELS, strict=True)]
    assert values.tolist() == pytest.approx(expected)


def test_cross_entropy_of_large_logits_is_finite():
    assert METRICS["cross_entropy"].values(np.array([[1e4, 0.0]]), np.array([1])).tolist() == [1e4]
