"""Tests of embeddings: compared with a reference, and scored on retrieval."""

import numpy as np
import pytest

from compressor.data.contract import Dataset
from compressor.errors import DataError, NumericalError, UsageError
from compressor.evaluation.accuracy import measure_accuracy
from compressor.evaluation.outputs import misfit, output_of
from compressor.evaluation.records import AccuracyConfig
from compressor.models.capabilities.signature import InputSpec
from compressor.runtimes.session import Session


class Echo(Session):
    """Outputs its input, with ``shift`` added to each vector."""

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


# Three passages, each followed by its query. The last query is nearer to the first passage.
SET = Texts(
    [[1, 0], [0.9, 0.1], [0, 1], [0.2, 0.8], [-1, 0], [0.3, 0.2]], [-100, 0, -100, 2, -100, 4]
)


def measure(data=SET, session=None, reference=None, **config):
    config = AccuracyConfig(data="test", **({"bootstrap": 0, "batch_size": 4} | config))
    return measure_accuracy(session or Echo(), data, config, lambda *_: None, reference)


def metric_values(report):
    return {metric.name: metric.value for metric in report.metrics}


def test_queries_retrieve_the_nearest_passage_of_the_data_set():
    report = measure(metrics=("top1", "mrr"))
    assert metric_values(report)["top1"] == pytest.approx(2 / 3)
    assert metric_values(report)["mrr"] == pytest.approx((1 + 1 + 1 / 3) / 3)
    assert metric_values(report)["top1[half=second]"] == 0.5
    assert report.samples == 6
    assert {metric.name: metric.samples for metric in report.metrics}["top1"] == 3


def test_passages_find_any_of_their_queries():
    # The second passage has two queries, of which one is near; the third has none.
    texts = Texts(
        [[1, 0], [0, 1], [-1, 0], [0.9, 0.3], [0.1, 0.8], [0.8, 0]], [-100, -100, -100, 0, 1, 1]
    )
    report = measure(texts, metrics=("reverse_recall@1", "reverse_recall@2", "recall@1"))
    values = metric_values(report)
    assert values["reverse_recall@1"] == 1.0
    assert values["recall@1"] == pytest.approx(2 / 3)
    assert {metric.name: metric.samples for metric in report.metrics}["reverse_recall@1"] == 2
    assert values["reverse_recall@1[half=first]"] == 1.0
    assert "reverse_recall@1[half=second]" not in values
    crossed = Texts([[1, 0], [0, 1], [0.2, 0.9], [0.9, 0.2]], [-100, -100, 0, 1])
    assert metric_values(measure(crossed, metrics=("reverse_recall@1",)))["reverse_recall@1"] == 0
    with pytest.raises(DataError, match=r"reverse_recall@2 .* 2 queries that a passage can find"):
        measure(crossed, metrics=("reverse_recall@2",))


def test_the_reverse_of_a_model_of_two_kinds_is_named_by_its_output():
    outputs = ("image_embeds", "text_embeds")
    reason = str(misfit("reverse_recall@5", outputs, None))
    assert "name `recall@5:image_embeds`" in reason
    assert misfit("reverse_recall@5", ("embedding",), None) is None


def test_a_part_of_the_data_set_is_searched_for_its_own_queries():
    assert metric_values(measure(metrics=("top1",), num_samples=4))["top1"] == 1.0


def test_chunks_of_queries_do_not_change_the_metrics(monkeypatch):
    whole = metric_values(measure(metrics=("top1", "mrr")))
    monkeypatch.setattr("compressor.evaluation.embeddings.MAX_CHUNK_VALUES", 1)
    assert metric_values(measure(metrics=("top1", "mrr"))) == whole


def test_cosine_scores_every_text_and_agreement_every_query():
    shifted = Echo((-0.65, 0.0))  # the first and the last query now find another passage
    report = measure(session=shifted, reference=Echo(), metrics=("cosine", "agreement"))
    by_hand = [
        (a @ (a + shifted.shift)) / np.linalg.norm(a) / np.linalg.norm(a + shifted.shift)
        for a in SET.x
    ]
    assert metric_values(report)["cosine"] == pytest.approx(np.mean(by_hand))
    assert metric_values(report)["agreement"] == pytest.approx(2 / 3)
    assert {metric.name: metric.samples for metric in report.metrics if "[" not in metric.name} == {
        "cosine": 6,
        "agreement": 3,
    }
    same = Echo()
    assert metric_values(measure(session=same, reference=same, metrics=("cosine", "agreement")))[
        "cosine"
    ] == pytest.approx(1)


def test_cosine_needs_no_labels():
    assert metric_values(measure(Texts(SET.x[:4]), reference=Echo(), metrics=("cosine",)))[
        "cosine"
    ] == pytest.approx(1)


class Wide(Echo):
    def compute(self, feeds):
        return {"embedding": np.repeat(feeds["x"], 2, axis=1)}


class Classes(Echo):
    output_names = ("logits",)


@pytest.mark.parametrize(
    ("data", "reference", "metrics", "error", "message"),
    [
        (SET, None, ("cosine",), UsageError, "cosine compare with a reference"),
        (Texts(SET.x), Echo(), ("agreement",), DataError, "no labels, required for agreement"),
        (Texts(SET.x, [-100] * 6), None, ("top1",), DataError, "not positions of passages"),
        (
            Texts(SET.x, [-100, 1, -100, 2, -100, 4]),
            None,
            ("top1",),
            DataError,
            "not positions of passages",
        ),
        (
            SET,
            Wide(),
            ("cosine",),
            DataError,
            r"the reference outputs embedding \[4, 4\], the model \[4, 2\]",
        ),
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
            "the reference outputs NaN for 4 of the first 4 samples",
        ),
        (Texts(np.empty((0, 2)), []), None, ("top1",), DataError, "is empty"),
    ],
)
def test_requests_that_cannot_be_measured_are_errors(data, reference, metrics, error, message):
    with pytest.raises(error, match=message):
        measure(data, reference=reference, metrics=metrics)


def test_a_model_with_logits_is_scored_on_its_logits():
    assert output_of("top1", Echo.output_names) == "embedding"
    assert output_of("top1", (*Echo.output_names, *Classes.output_names)) == "logits"
