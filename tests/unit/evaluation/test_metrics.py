"""Tests of each metric on a few positions."""

import numpy as np
import pytest

from compressor.evaluation.metrics import METRICS, reference_metrics

LOGITS = np.array([[2.0, 1.0, 0.0], [0.0, 0.0, 5.0], [1.0, 1.0, 0.0]], np.float32)
LABELS = np.array([0, 1, 0])


def test_top1_scores_each_position():
    assert METRICS["top1"].score(LOGITS, LABELS).tolist() == [1.0, 0.0, 1.0]


def test_cross_entropy_by_position_in_nats():
    values = METRICS["cross_entropy"].score(LOGITS, LABELS)
    expected = [
        -np.log(np.exp(row[label]) / np.exp(row).sum())
        for row, label in zip(LOGITS, LABELS, strict=True)
    ]
    assert values.tolist() == pytest.approx(expected)


def test_cross_entropy_of_large_logits_is_finite():
    assert METRICS["cross_entropy"].score(np.array([[1e4, 0.0]]), np.array([1])).tolist() == [1e4]


def test_perplexity_is_the_exponential_of_a_mean_cross_entropy():
    assert (
        METRICS["perplexity"].score(LOGITS, LABELS).tolist()
        == METRICS["cross_entropy"].score(LOGITS, LABELS).tolist()
    )
    assert METRICS["perplexity"].from_mean(np.log(7.0)) == pytest.approx(7.0)
    assert METRICS["perplexity"].from_mean(1e4) == np.inf


def test_agreement_compares_the_largest_logits():
    reference = np.array([[9.0, 8.0, 0.0], [0.0, 1.0, 0.5], [0.0, 2.0, 0.0]])
    assert METRICS["agreement"].score(LOGITS, reference).tolist() == [1.0, 0.0, 0.0]


def test_kl_is_from_the_reference_to_the_model_in_nats():
    reference = np.array([[np.log(0.75), np.log(0.25)]])
    model = np.array([[np.log(0.5), np.log(0.5)]]) + 3
    expected = 0.75 * np.log(0.75 / 0.5) + 0.25 * np.log(0.25 / 0.5)
    assert METRICS["kl"].score(model, reference).tolist() == pytest.approx([expected])
    assert METRICS["kl"].score(reference, model).tolist() != pytest.approx([expected], rel=0.01)


def test_kl_of_equal_or_shifted_logits_is_0():
    assert METRICS["kl"].score(LOGITS, LOGITS).tolist() == [0.0, 0.0, 0.0]
    values = METRICS["kl"].score(LOGITS.astype(np.float64) + 0.1, LOGITS)
    assert (values >= 0).all()
    assert values.tolist() == pytest.approx([0.0, 0.0, 0.0], abs=1e-6)


def test_kl_where_one_side_gives_probability_0():
    excluded, uniform = np.array([[0.0, -np.inf]]), np.array([[0.0, 0.0]])
    assert METRICS["kl"].score(uniform, excluded).tolist() == pytest.approx([np.log(2)])
    assert METRICS["kl"].score(excluded, excluded).tolist() == [0.0]
    assert METRICS["kl"].score(excluded, uniform).tolist() == [np.inf]


def test_metrics_that_compare_with_a_reference():
    assert reference_metrics(METRICS) == (
        "agreement",
        "kl",
        "cosine",
        "max_abs",
        "equal",
        "relative_error",
        "correlation",
    )
    assert reference_metrics(("top1", "kl:logits", "mse")) == ("kl:logits",)


def test_reciprocal_rank_counts_larger_logits_and_earlier_ties():
    logits = np.array([[3.0, 1.0, 2.0], [1.0, 1.0, 0.0], [1.0, 1.0, 0.0], [0.0, 5.0, 7.0]])
    assert METRICS["mrr"].score(logits, np.array([0, 1, 0, 0])).tolist() == pytest.approx(
        [1, 1 / 2, 1, 1 / 3]
    )


def test_the_share_of_equal_values():
    ids, reference = np.array([[1, 2], [3, 4]]), np.array([[1, 2], [3, 5]])
    assert METRICS["equal"].score(ids, reference).tolist() == [1.0, 0.5]
    assert METRICS["equal"].score(ids[:, :0], reference[:, :0]).tolist() == [1.0, 1.0]


def test_cosine_of_vectors_of_any_length():
    vectors, reference = (
        np.array([[2.0, 0.0], [0.0, 0.0], [1.0, 1.0]]),
        np.array([[5.0, 0.0], [1.0, 0.0], [0.0, 1.0]]),
    )
    assert METRICS["cosine"].score(vectors, reference).tolist() == pytest.approx([1, 0, 0.5**0.5])
