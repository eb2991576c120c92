"""Vectors of a whole set, judged by themselves and by what they find."""

import numpy as np
import pytest

from compressor.data.contract import Dataset
from compressor.errors import DataError, NumericalError, UsageError
from compressor.evaluation.embeddings import answers_with_embeddings, measure_embeddings
from compressor.evaluation.records import AccuracyConfig
from compressor.models.capabilities.signature import InputSpec
from compressor.runtimes.session import Session


class Echo(Session):
    """Answers with its input, each vector with ``shift`` added."""

    runtime, output_names = "echo 1", ("embedding",)
    inputs = (InputSpec("x", "float64", ("batch", "width")),)

    def __init__(self, shift=(0.0, 0.0)):
        self.shift = np.asarray(shift)

    def compute(self, feeds):
        return {"embedding": feeds["x"] + self.shift}


class Texts(Dataset):
    input_names = ("x",)

    def __init__(self, x, label=None):
        self.x, self.label = np.asarray(x, float), None if label is None else np.asarray(label)
        self.label_name = None if label is None else "label"

    def __len__(self):
        return len(self.x)

    def batch(self, indices, epoch=0):
        return {"x": self.x[indices]} | (
            {} if self.label is None else {"label": self.label[indices]}
        )

    def slices(self):
        return {"half": np.array(["first", "second"]).repeat(3)} if len(self) == 6 else {}


# passage, query; passage, query; passage, query. The last query is nearer to the first passage than to its own.
SET = Texts(
    [[1, 0], [0.9, 0.1], [0, 1], [0.2, 0.8], [-1, 0], [0.3, 0.2]], [-100, 0, -100, 2, -100, 4]
)


def measured(data=SET, session=None, reference=None, **config):
    config = AccuracyConfig(data="test", **({"bootstrap": 0, "batch_size": 4} | config))
    return measure_embeddings(session or Echo(), data, config, lambda *_: None, reference)


def figures(report):
    return {metric.name: metric.value for metric in report.metrics}


def test_queries_are_answered_by_the_nearest_passage_of_the_whole_set():
    report = measured(metrics=("top1", "mrr"))
    assert figures(report)["top1"] == pytest.approx(2 / 3)
    assert figures(report)["mrr"] == pytest.approx((1 + 1 + 1 / 3) / 3)
    assert figures(report)["top1[half=second]"] == 0.5
    assert report.samples == 6
    assert {metric.name: metric.samples for metric in report.metrics}["top1"] == 3


def test_the_first_part_of_a_set_answers_its_own_queries():
    assert figures(measured(metrics=("top1",), num_samples=4))["top1"] == 1.0


def test_many_queries_a_few_at_a_time(monkeypatch):
    whole = figures(measured(metrics=("top1", "mrr")))
    monkeypatch.setattr("compressor.evaluation.embeddings.CHUNK_CELLS", 1)
    assert figures(measured(metrics=("top1", "mrr"))) == whole


def test_against_a_reference_all_vectors_count_and_queries_for_agreement():
    away = Echo((-0.65, 0.0))  # the last query now finds another passage; so does the first
    found = measured(session=away, reference=Echo(), metrics=("cosine", "agreement"))
    by_hand = [
        (a @ (a + away.shift)) / np.linalg.norm(a) / np.linalg.norm(a + away.shift) for a in SET.x
    ]
    assert figures(found)["cosine"] == pytest.approx(np.mean(by_hand))
    assert figures(found)["agreement"] == pytest.approx(2 / 3)
    assert {metric.name: metric.samples for metric in found.metrics if "[" not in metric.name} == {
        "cosine": 6,
        "agreement": 3,
    }
    same = Echo()
    assert figures(measured(session=same, reference=same, metrics=("cosine", "agreement")))[
        "cosine"
    ] == pytest.approx(1)


def test_cosine_needs_no_labels():
    assert figures(measured(Texts(SET.x[:4]), reference=Echo(), metrics=("cosine",)))[
        "cosine"
    ] == pytest.approx(1)


class Wide(Echo):
    def compute(self, feeds):
        return {"embedding": np.repeat(feeds["x"], 2, axis=1)}


class Classes(Echo):
    output_names = ("logits",)


@pytest.mark.parametrize(
    ("data", "reference", "metrics", "error", "told"),
    [
        (SET, None, ("cosine",), UsageError, "cosine compare with a reference"),
        (Texts(SET.x), Echo(), ("agreement",), DataError, "no labels: agreement cannot"),
        (Texts(SET.x, [-100] * 6), None, ("top1",), DataError, "not the places of passages"),
        (
            Texts(SET.x, [-100, 1, -100, 2, -100, 4]),
            None,
            ("top1",),
            DataError,
            "not the places of passages",
        ),
        (SET, Wide(), ("cosine",), DataError, "have the width 4, the model's 2"),
        (
            SET,
            Classes(),
            ("cosine",),
            DataError,
            "the reference has no output `embedding`; it has logits",
        ),
        (
            SET,
            Echo((np.nan, 0)),
            ("cosine",),
            NumericalError,
            "the reference answers 4 of 4 samples of a batch with NaN",
        ),
        (Texts(np.empty((0, 2)), []), None, ("top1",), DataError, "is empty"),
    ],
)
def test_what_cannot_be_measured_is_one_error(data, reference, metrics, error, told):
    with pytest.raises(error, match=told):
        measured(data, reference=reference, metrics=metrics)


def test_a_model_with_logits_is_not_judged_so():
    assert answers_with_embeddings(Echo())
    assert not answers_with_embeddings(Classes())
