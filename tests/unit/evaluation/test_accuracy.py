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
    """Answers with its input."""

    runtime, output_names = "echo 1", ("logits",)
    inputs = (InputSpec("x", "float64", ("batch", 2)),)

    def compute(self, feeds):
        return {"logits": feeds["x"]}


class Tokens(Session):
    """Answers token by token, with the row of a table for each; counts the earlier answers that are still in memory."""

    runtime, output_names = "tokens 1", ("logits",)
    inputs = (InputSpec("x", "int64", ("batch", "length")),)

    def __init__(self, table):
        self.table = np.asarray(table, np.float32)
        self.answers, self.alive = [], []

    def compute(self, feeds):
        self.alive.append(sum(answer() is not None for answer in self.answers))
        logits = self.table[feeds["x"]]
        self.answers.append(weakref.ref(logits))
        return {"logits": logits}


class Fixed(Dataset):
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
DATA = Fixed([[1, 0], [1, 0], [0, 1], [0, 1]], [0, 0, 0, 1], SLICES)


TABLE = np.log([[0.7, 0.2, 0.1], [0.1, 0.8, 0.1], [0.3, 0.3, 0.4]])
WINDOWS = [[0, 1, 2], [1, 1, 0], [2, 2, 2]]
NEXT = [[0, 2, -100], [1, -100, -100], [2, 0, 1]]


def measured(data=DATA, session=None, reference=None, **config):
    return measure_accuracy(
        session or Echo(), data, AccuracyConfig(data="test", **config), lambda *_: None, reference
    )


def figures(report):
    return {metric.name: metric.value for metric in report.metrics}


def test_the_whole_set_first_then_slices_of_each_axis():
    report = measured(bootstrap=50)
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


def test_the_same_intervals_each_time():
    assert measured() == measured()


def test_at_most_num_samples():
    report = measured(num_samples=3, batch_size=2)
    assert report.samples == 3
    assert report.slices["language"] == {"en": 1, "zh": 2}


def test_without_bootstrap_there_is_no_interval():
    assert measured(bootstrap=0).metrics[0].low is None


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        (Fixed(np.zeros((0, 2)), []), DataError, "is empty"),
        (
            Fixed([[0, 1]], [2]),
            DataError,
            "labels of 'test' go from 2 to 2; the model has 2 classes",
        ),
        (
            Fixed([[np.nan, 1], [0, 1]], [0, 0]),
            NumericalError,
            "answers 1 of the first 2 samples of 'test' with NaN",
        ),
    ],
)
def test_what_cannot_be_judged(data, error, message):
    with pytest.raises(error, match=message):
        measured(data)


def test_an_infinite_metric_is_an_error():
    with pytest.raises(NumericalError, match="cross_entropy is not finite"):
        measured(Fixed([[-np.inf, 1]], [0]), metrics=("cross_entropy",))


def test_unknown_metric():
    with pytest.raises(UsageError, match="unknown metrics: top2"):
        measured(metrics=("top2",))


def test_a_sample_of_tokens_is_the_mean_over_those_that_count():
    data = Fixed(WINDOWS, NEXT, {"half": np.array(["a", "a", "b"])})
    report = measured(
        data, Tokens(TABLE), metrics=("top1", "cross_entropy", "perplexity"), bootstrap=50
    )
    by_sample = [-np.mean(np.log([0.7, 0.1])), -np.log(0.8), -np.mean(np.log([0.4, 0.3, 0.3]))]
    told = figures(report)
    assert told["top1"] == pytest.approx((1 / 2 + 1 + 1 / 3) / 3)
    assert told["cross_entropy"] == pytest.approx(np.mean(by_sample))
    assert told["perplexity"] == pytest.approx(np.exp(np.mean(by_sample)))
    assert told["perplexity[half=a]"] == pytest.approx(np.exp(np.mean(by_sample[:2])))
    assert (report.samples, report.predictions, report.labels) == (3, (), ())


def test_the_interval_of_perplexity_is_that_of_cross_entropy_through_the_exponential():
    report = measured(
        Fixed(WINDOWS, NEXT), Tokens(TABLE), metrics=("cross_entropy", "perplexity"), bootstrap=200
    )
    entropy, perplexity = report.metrics
    assert (perplexity.low, perplexity.high) == pytest.approx(
        (np.exp(entropy.low), np.exp(entropy.high))
    )
    assert (perplexity.better, perplexity.unit) == ("lower", "")


def test_samples_without_a_label_do_not_count():
    data = Fixed([[1, 0], [1, 0], [0, 1], [0, 1]], [0, -100, 0, -100], SLICES)
    report = measured(data, batch_size=2)
    assert figures(report)["top1"] == 0.5
    assert (report.samples, report.predictions, report.labels) == (2, (0, 1), (0, 0))
    assert report.slices == {"input": {"speech": 1, "text": 1}, "language": {"zh": 2}}
    with pytest.raises(DataError, match="no label of the set 'test' counts"):
        measured(Fixed([[1, 0]], [-100]))


def test_what_does_not_count_may_be_nan():
    table = np.where(np.arange(3)[:, None] == 2, np.nan, TABLE)
    labels = [[0, 1, -100], [1, 1, 0], [-100, -100, -100]]
    report = measured(Fixed(WINDOWS, labels), Tokens(table), metrics=("top1", "cross_entropy"))
    assert report.samples == 2
    with pytest.raises(NumericalError, match="the model answers 1 of the first 3 samples"):
        measured(
            Fixed(WINDOWS, [[0, 1, -100], [1, 1, 0], [-100, 0, -100]]), Tokens(table), batch_size=1
        )


@pytest.mark.parametrize("batch_size", [1, 2, 3])
def test_batches_do_not_matter_and_only_one_is_in_memory(batch_size):
    session, reference = Tokens(TABLE), Tokens(TABLE[::-1])
    metrics = ("top1", "perplexity", "agreement", "kl")
    report = measured(
        Fixed(WINDOWS, NEXT), session, reference, metrics=metrics, batch_size=batch_size
    )
    whole = measured(Fixed(WINDOWS, NEXT), Tokens(TABLE), Tokens(TABLE[::-1]), metrics=metrics)
    assert figures(report) == pytest.approx(figures(whole))
    assert session.alive == reference.alive == [0] * len(session.answers)
    assert len(session.answers) == -(-3 // batch_size)


def test_positions_are_judged_a_few_at_a_time(monkeypatch):
    whole = measured(Fixed(WINDOWS, NEXT), Tokens(TABLE), metrics=("top1", "perplexity"))
    monkeypatch.setattr("compressor.evaluation.accuracy.CHUNK_CELLS", 6)
    assert measured(Fixed(WINDOWS, NEXT), Tokens(TABLE), metrics=("top1", "perplexity")) == whole


def test_fidelity_needs_no_labels():
    reference = np.log([[0.5, 0.3, 0.2], [0.1, 0.8, 0.1], [0.6, 0.2, 0.2]])
    report = measured(Fixed(WINDOWS), Tokens(TABLE), Tokens(reference), metrics=("agreement", "kl"))
    each = (np.exp(reference) * (reference - TABLE)).sum(axis=1)
    assert figures(report)["agreement"] == pytest.approx((2 / 3 + 1 + 0) / 3)
    assert figures(report)["kl"] == pytest.approx(
        np.mean([each.mean(), each[[1, 1, 0]].mean(), each[2]]), rel=1e-5
    )
    assert [metric.better for metric in report.metrics] == ["higher", "lower"]
    assert (report.samples, report.predictions, report.labels) == (3, (), ())


def test_fidelity_counts_the_positions_that_labels_count():
    report = measured(
        Fixed(WINDOWS, NEXT), Tokens(TABLE), Tokens(TABLE[::-1]), metrics=("agreement",)
    )
    # Row 0 of the table agrees with row 2 nowhere, row 1 with itself.
    assert figures(report)["agreement"] == pytest.approx((1 / 2 + 1 + 0) / 3)


def test_a_model_is_itself_and_is_asked_once():
    session = Tokens(TABLE)
    report = measured(Fixed(WINDOWS), session, session, metrics=("agreement", "kl"))
    assert figures(report) == {"agreement": 1.0, "kl": 0.0}
    assert (report.metrics[1].low, report.metrics[1].high) == (0.0, 0.0)
    assert len(session.answers) == 1


@pytest.mark.parametrize(
    ("data", "reference", "metrics", "error", "message"),
    [
        (
            Fixed(WINDOWS),
            None,
            ("kl", "agreement"),
            UsageError,
            "kl and agreement compare with a reference",
        ),
        (
            Fixed(WINDOWS),
            Tokens(TABLE),
            ("kl", "top1"),
            DataError,
            "'test' has no labels: top1 cannot",
        ),
        (
            Fixed(WINDOWS),
            Tokens(TABLE[:, :2]),
            ("kl",),
            DataError,
            r"answers with logits \[3, 3, 2\], the model",
        ),
        (
            Fixed(WINDOWS),
            Tokens(TABLE * np.nan),
            ("kl",),
            NumericalError,
            "the reference answers 3 of the first 3",
        ),
        (
            Fixed(WINDOWS, [0, 1, 2]),
            None,
            ("top1",),
            DataError,
            r"\[3, 3, 3\] and labels \[3\] of 'test' do not fit",
        ),
        (
            Fixed(WINDOWS, np.full((3, 3), 3)),
            None,
            ("top1",),
            DataError,
            "from 3 to 3; the model has 3 classes",
        ),
    ],
)
def test_what_cannot_be_compared(data, reference, metrics, error, message):
    with pytest.raises(error, match=message):
        measured(data, Tokens(TABLE), reference, metrics=metrics)


def test_an_answer_that_the_model_rules_out_makes_kl_infinite():
    with pytest.raises(NumericalError, match="kl is not finite"):
        measured(Fixed([[0, 0]]), Tokens([[0, -np.inf]]), Tokens([[0, 0]]), metrics=("kl",))
