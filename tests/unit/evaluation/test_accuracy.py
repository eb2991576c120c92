"""Tests of accuracy from logits: metrics, slices, intervals, references and errors."""

import weakref

import numpy as np
import pytest

from compressor.data.contract import Dataset
from compressor.errors import DataError, NumericalError, UsageError
from compressor.evaluation.accuracy import measure_accuracy
from compressor.evaluation.records import AccuracyConfig
from compressor.models.capabilities.signature import InputSpec
from compressor.runtimes.session import Session


class Echo(Session):
    """Outputs its input as logits."""

    runtime, output_names = "echo 1", ("logits",)
    inputs = (InputSpec("x", "float64", ("batch", 2)),)

    def compute(self, feeds):
        return {"logits": feeds["x"]}


class Tokens(Session):
    """Outputs a row of a table for each token; counts earlier outputs that are still in memory."""

    runtime, output_names = "tokens 1", ("logits",)
    inputs = (InputSpec("x", "int64", ("batch", "length")),)

    def __init__(self, table):
        self.table = np.asarray(table, np.float32)
        self.outputs, self.alive = [], []

    def compute(self, feeds):
        self.alive.append(sum(output() is not None for output in self.outputs))
        logits = self.table[feeds["x"]]
        self.outputs.append(weakref.ref(logits))
        return {"logits": logits}


class ArrayDataset(Dataset):
    input_names = ("x",)

    def __init__(self, x, label=None, slices=None):
        self.x, self.label, self.named = (
            np.asarray(x, float),
            label if label is None else np.asarray(label),
            slices or {},
        )
        self.label_name = None if label is None else "label"

    def __len__(self):
        return len(self.x)

    def batch(self, indices, epoch=0):
        return {"x": self.x[indices]} | (
            {} if self.label is None else {"label": self.label[indices]}
        )

    def slices(self):
        return self.named


SLICES = {
    "input": np.array(["text", "text", "speech", "speech"]),
    "language": np.array(["zh", "en", "zh", "en"]),
}
DATA = ArrayDataset([[1, 0], [1, 0], [0, 1], [0, 1]], [0, 0, 0, 1], SLICES)


TABLE = np.log([[0.7, 0.2, 0.1], [0.1, 0.8, 0.1], [0.3, 0.3, 0.4]])
WINDOWS = [[0, 1, 2], [1, 1, 0], [2, 2, 2]]
NEXT = [[0, 2, -100], [1, -100, -100], [2, 0, 1]]


def measure(data=DATA, session=None, reference=None, **config):
    return measure_accuracy(
        session or Echo(), data, AccuracyConfig(data="test", **config), lambda *_: None, reference
    )


def metric_values(report):
    return {metric.name: metric.value for metric in report.metrics}


def test_metrics_of_the_data_set_precede_those_of_slices():
    report = measure(bootstrap=50)
    values = {metric.name: (metric.value, metric.samples) for metric in report.metrics}
    assert next(iter(values)) == "top1"
    assert values == {
        "top1": (0.75, 4),
        "top1[input=speech]": (0.5, 2),
        "top1[input=text]": (1.0, 2),
        "top1[language=en]": (1.0, 2),
        "top1[language=zh]": (0.5, 2),
    }
    assert report.slices["input"] == {"speech": 2, "text": 2}
    assert (report.predictions, report.labels) == ((0, 0, 1, 1), (0, 0, 0, 1))
    assert report.metrics[0].low <= 0.75 <= report.metrics[0].high


def test_intervals_are_reproducible():
    assert measure() == measure()


def test_num_samples_limits_the_samples():
    report = measure(num_samples=3, batch_size=2)
    assert report.samples == 3
    assert report.slices["language"] == {"en": 1, "zh": 2}


def test_without_bootstrap_there_is_no_interval():
    assert measure(bootstrap=0).metrics[0].low is None


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        (ArrayDataset(np.zeros((0, 2)), []), DataError, "is empty"),
        (
            ArrayDataset([[0, 1]], [2]),
            DataError,
            "labels of 'test' range from 2 to 2; the model has 2 classes",
        ),
        (
            ArrayDataset([[np.nan, 1], [0, 1]], [0, 0]),
            NumericalError,
            "outputs NaN for 1 of the first 2 samples of 'test'",
        ),
    ],
)
def test_unusable_data_or_outputs_are_errors(data, error, message):
    with pytest.raises(error, match=message):
        measure(data)


def test_an_infinite_metric_is_an_error():
    with pytest.raises(NumericalError, match="cross_entropy is not finite"):
        measure(ArrayDataset([[-np.inf, 1]], [0]), metrics=("cross_entropy",))


def test_an_unknown_metric_is_an_error():
    with pytest.raises(UsageError, match="unknown metrics: top2"):
        measure(metrics=("top2",))


def test_a_sample_of_tokens_takes_the_mean_over_scored_positions():
    data = ArrayDataset(WINDOWS, NEXT, {"half": np.array(["a", "a", "b"])})
    report = measure(
        data, Tokens(TABLE), metrics=("top1", "cross_entropy", "perplexity"), bootstrap=50
    )
    by_sample = [-np.mean(np.log([0.7, 0.1])), -np.log(0.8), -np.mean(np.log([0.4, 0.3, 0.3]))]
    values = metric_values(report)
    assert values["top1"] == pytest.approx((1 / 2 + 1 + 1 / 3) / 3)
    assert values["cross_entropy"] == pytest.approx(np.mean(by_sample))
    assert values["perplexity"] == pytest.approx(np.exp(np.mean(by_sample)))
    assert values["perplexity[half=a]"] == pytest.approx(np.exp(np.mean(by_sample[:2])))
    assert (report.samples, report.predictions, report.labels) == (3, (), ())


def test_the_interval_of_perplexity_is_the_exponential_of_that_of_cross_entropy():
    report = measure(
        ArrayDataset(WINDOWS, NEXT),
        Tokens(TABLE),
        metrics=("cross_entropy", "perplexity"),
        bootstrap=200,
    )
    entropy, perplexity = report.metrics
    assert (perplexity.low, perplexity.high) == pytest.approx(
        (np.exp(entropy.low), np.exp(entropy.high))
    )
    assert (perplexity.better, perplexity.unit) == ("lower", "")


def test_samples_without_a_label_are_not_counted():
    data = ArrayDataset([[1, 0], [1, 0], [0, 1], [0, 1]], [0, -100, 0, -100], SLICES)
    report = measure(data, batch_size=2)
    assert metric_values(report)["top1"] == 0.5
    assert (report.samples, report.predictions, report.labels) == (2, (0, 1), (0, 0))
    assert report.slices == {"input": {"speech": 1, "text": 1}, "language": {"zh": 2}}
    with pytest.raises(DataError, match="all labels of the data set 'test' are -100"):
        measure(ArrayDataset([[1, 0]], [-100]))


def test_positions_that_are_not_scored_may_be_nan():
    table = np.where(np.arange(3)[:, None] == 2, np.nan, TABLE)
    labels = [[0, 1, -100], [1, 1, 0], [-100, -100, -100]]
    report = measure(
        ArrayDataset(WINDOWS, labels), Tokens(table), metrics=("top1", "cross_entropy")
    )
    assert report.samples == 2
    with pytest.raises(NumericalError, match="the model outputs NaN for 1 of the first 3 samples"):
        measure(
            ArrayDataset(WINDOWS, [[0, 1, -100], [1, 1, 0], [-100, 0, -100]]),
            Tokens(table),
            batch_size=1,
        )


@pytest.mark.parametrize("batch_size", [1, 2, 3])
def test_the_batch_size_does_not_matter_and_one_batch_is_in_memory(batch_size):
    session, reference = Tokens(TABLE), Tokens(TABLE[::-1])
    metrics = ("top1", "perplexity", "agreement", "kl")
    report = measure(
        ArrayDataset(WINDOWS, NEXT), session, reference, metrics=metrics, batch_size=batch_size
    )
    whole = measure(
        ArrayDataset(WINDOWS, NEXT), Tokens(TABLE), Tokens(TABLE[::-1]), metrics=metrics
    )
    assert metric_values(report) == pytest.approx(metric_values(whole))
    assert session.alive == reference.alive == [0] * len(session.outputs)
    assert len(session.outputs) == -(-3 // batch_size)


def test_chunks_of_positions_do_not_change_the_report(monkeypatch):
    whole = measure(ArrayDataset(WINDOWS, NEXT), Tokens(TABLE), metrics=("top1", "perplexity"))
    monkeypatch.setattr("compressor.evaluation.logits.MAX_CHUNK_VALUES", 6)
    assert (
        measure(ArrayDataset(WINDOWS, NEXT), Tokens(TABLE), metrics=("top1", "perplexity")) == whole
    )


def test_comparison_with_a_reference_needs_no_labels():
    reference = np.log([[0.5, 0.3, 0.2], [0.1, 0.8, 0.1], [0.6, 0.2, 0.2]])
    report = measure(
        ArrayDataset(WINDOWS), Tokens(TABLE), Tokens(reference), metrics=("agreement", "kl")
    )
    each = (np.exp(reference) * (reference - TABLE)).sum(axis=1)
    assert metric_values(report)["agreement"] == pytest.approx((2 / 3 + 1 + 0) / 3)
    assert metric_values(report)["kl"] == pytest.approx(
        np.mean([each.mean(), each[[1, 1, 0]].mean(), each[2]]), rel=1e-5
    )
    assert [metric.better for metric in report.metrics] == ["higher", "lower"]
    assert (report.samples, report.predictions, report.labels) == (3, (), ())


def test_comparison_with_a_reference_scores_labelled_positions():
    report = measure(
        ArrayDataset(WINDOWS, NEXT), Tokens(TABLE), Tokens(TABLE[::-1]), metrics=("agreement",)
    )
    # Row 0 of the table agrees with row 2 nowhere, row 1 with itself.
    assert metric_values(report)["agreement"] == pytest.approx((1 / 2 + 1 + 0) / 3)


def test_a_model_that_is_its_own_reference_runs_once():
    session = Tokens(TABLE)
    report = measure(ArrayDataset(WINDOWS), session, session, metrics=("agreement", "kl"))
    assert metric_values(report) == {"agreement": 1.0, "kl": 0.0}
    assert (report.metrics[1].low, report.metrics[1].high) == (0.0, 0.0)
    assert len(session.outputs) == 1


@pytest.mark.parametrize(
    ("data", "reference", "metrics", "error", "message"),
    [
        (
            ArrayDataset(WINDOWS),
            None,
            ("kl", "agreement"),
            UsageError,
            "kl and agreement compare with a reference",
        ),
        (
            ArrayDataset(WINDOWS),
            Tokens(TABLE),
            ("kl", "top1"),
            DataError,
            "'test' has no labels, required for top1",
        ),
        (
            ArrayDataset(WINDOWS),
            Tokens(TABLE[:, :2]),
            ("kl",),
            DataError,
            r"outputs logits \[3, 3, 2\], the model",
        ),
        (
            ArrayDataset(WINDOWS),
            Tokens(TABLE * np.nan),
            ("kl",),
            NumericalError,
            "the reference outputs NaN for 3 of the first 3",
        ),
        (
            ArrayDataset(WINDOWS, [0, 1, 2]),
            None,
            ("top1",),
            DataError,
            r"\[3, 3, 3\] and labels \[3\] of 'test' do not fit",
        ),
        (
            ArrayDataset(WINDOWS, np.full((3, 3), 3)),
            None,
            ("top1",),
            DataError,
            "range from 3 to 3; the model has 3 classes",
        ),
    ],
)
def test_references_that_do_not_fit_are_errors(data, reference, metrics, error, message):
    with pytest.raises(error, match=message):
        measure(data, Tokens(TABLE), reference, metrics=metrics)


def test_kl_is_an_error_where_the_model_gives_probability_0():
    with pytest.raises(NumericalError, match="kl is not finite"):
        measure(ArrayDataset([[0, 0]]), Tokens([[0, -np.inf]]), Tokens([[0, 0]]), metrics=("kl",))
