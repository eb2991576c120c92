"""Metrics of outputs by name: values, scores, hidden states, segmentations and transcripts."""

import numpy as np
import pytest

from compressor.data.contract import Dataset
from compressor.errors import DataError
from compressor.evaluation.accuracy import measure_accuracy
from compressor.evaluation.outputs import fitting_metrics, misfit, output_of
from compressor.evaluation.records import AccuracyConfig
from compressor.evaluation.transcripts import collapse, edit_distance
from compressor.models.capabilities.signature import InputSpec, OutputSpec
from compressor.runtimes.session import Session


class Model(Session):
    """Outputs arrays of the data set, times a factor plus a shift."""

    runtime = "model 1"

    def __init__(self, *names, factor=1.0, shift=0.0):
        self.output_names = names
        self.inputs = tuple(InputSpec(name, "float64", ("batch", "...")) for name in names)
        self.factor, self.shift = factor, shift

    def run(self, batch):
        return {name: batch[name] * self.factor + self.shift for name in self.output_names}

    def compute(self, feeds):
        raise NotImplementedError


class Arrays(Dataset):
    def __init__(self, label=None, **arrays):
        self.arrays = {name: np.asarray(array) for name, array in arrays.items()}
        self.input_names = tuple(arrays)
        self.label_name = None
        if label is not None:
            self.arrays["label"], self.label_name = np.asarray(label), "label"

    def __len__(self):
        return len(next(iter(self.arrays.values())))

    def batch(self, indices, epoch=0):
        return {name: array[indices] for name, array in self.arrays.items()}


class Spoken(Arrays):
    """Transcripts of letters: token 1 is a space, 0 the blank."""

    blank_token = 0
    texts = ("ab c", "aa c")

    def spell(self, tokens):
        return "".join(" abcdefgh"[token - 1] for token in tokens)


def measure(data, model, reference=None, *metrics):
    config = AccuracyConfig(data="test", metrics=metrics, bootstrap=0, batch_size=2)
    report = measure_accuracy(model, data, config, lambda *_: None, reference)
    return {metric.name: metric.value for metric in report.metrics}


RANDOM = np.random.default_rng(0)
BOXES = RANDOM.normal(size=(4, 3, 4))


def test_values_of_a_named_output_are_compared_sample_by_sample():
    data = Arrays(logits=RANDOM.normal(size=(4, 3, 5)), pred_boxes=BOXES)
    names = ("logits", "pred_boxes")
    values = measure(
        data,
        Model(*names, factor=2.0),
        Model(*names),
        "cosine:pred_boxes",
        "max_abs:pred_boxes",
        "relative_error:pred_boxes",
        "agreement",
    )
    assert values["cosine:pred_boxes"] == pytest.approx(1)
    assert values["relative_error:pred_boxes"] == pytest.approx(1)
    assert values["max_abs:pred_boxes"] == pytest.approx(
        np.abs(BOXES).reshape(4, -1).max(axis=1).mean()
    )
    assert values["agreement"] == 1


def test_padding_does_not_count():
    hidden = RANDOM.normal(size=(2, 3, 4))
    mask = np.array([[1, 1, 0], [1, 1, 1]])
    data = Arrays(last_hidden_state=hidden, attention_mask=mask)
    other = hidden.copy()
    other[0, 2] = np.nan

    class Padded(Model):
        def run(self, batch):
            return {"last_hidden_state": other[: len(batch["attention_mask"])]}

    model, reference = Padded("last_hidden_state"), Model("last_hidden_state")
    assert measure(data, model, reference, "cosine")["cosine"] == pytest.approx(1)
    logits = Arrays(logits=hidden, attention_mask=mask)
    shifted = hidden.copy()
    shifted[0, 2] = -shifted[0, 2]

    class Shifted(Model):
        def run(self, batch):
            return {"logits": shifted[: len(batch["attention_mask"])]}

    assert measure(logits, Shifted("logits"), Model("logits"), "agreement")["agreement"] == 1


def test_hidden_states_are_scored_on_retrieval_by_their_mean():
    hidden = np.array([[[1.0, 0], [1, 0]], [[0.9, 0], [9, 9]], [[0, 1], [0, 1]], [[0, 2], [0, 2]]])
    mask = np.array([[1, 1], [1, 0], [1, 1], [1, 1]])
    data = Arrays([-100, 0, -100, 2], last_hidden_state=hidden, attention_mask=mask)
    values = measure(data, Model("last_hidden_state"), None, "top1", "mrr:last_hidden_state")
    assert values == {"top1": 1.0, "mrr:last_hidden_state": 1.0}


def test_segmentations_have_their_classes_first():
    logits = RANDOM.normal(size=(2, 3, 4, 5))
    label = logits.argmax(axis=1)
    label[0, 0] = -100
    data = Arrays(label, logits=logits)
    assert measure(data, Model("logits"), None, "top1")["top1"] == 1
    unlabelled = Arrays(logits=logits)
    assert measure(unlabelled, Model("logits"), Model("logits"), "agreement", "kl") == {
        "agreement": 1.0,
        "kl": 0.0,
    }


def test_scores_are_compared_as_numbers():
    scores = np.array([[1.0], [2.0], [4.0], [3.0]])
    data = Arrays(np.array([0.0, 1.0, 2.0, 3.0], np.float32), logits=scores)
    values = measure(
        data,
        Model("logits"),
        Model("logits", factor=-2.0, shift=1.0),
        "mse",
        "spearman",
        "correlation",
    )
    assert values["mse"] == pytest.approx((1 + 1 + 4 + 0) / 4)
    assert values["spearman"] == pytest.approx(0.8)
    assert values["correlation"] == pytest.approx(-1)
    with pytest.raises(DataError, match=r"agreement compares classes, .* has one score"):
        measure(data, Model("logits"), Model("logits"), "agreement")


def test_transcripts_of_ctc_are_scored_by_words_and_characters():
    paths = [[2, 2, 0, 3, 1, 4, 4, 0], [2, 0, 2, 1, 1, 5, 0, 0]]  # "ab c", "aa d"
    logits = np.eye(8)[np.array(paths)]
    label = [[2, 3, 1, 4], [2, 2, 1, 4]]
    values = measure(Spoken(label, logits=logits), Model("logits"), None, "wer", "cer")
    assert values == {"wer": pytest.approx(1 / 4), "cer": pytest.approx(1 / 8)}
    with pytest.raises(DataError, match="wer compare texts, and the data set has none"):
        measure(Arrays(label, logits=logits), Model("logits"), None, "wer")


def test_transcripts_are_no_labels_of_positions():
    logits = np.random.default_rng(0).normal(size=(2, 9, 5))
    data = Spoken(label=[[2, 3, 1, 4, -100], [2, 2, 1, 4, -100]], logits=logits)
    model = Model("logits")
    assert measure(data, model, model, "agreement", "kl") == {"agreement": 1, "kl": 0}


def test_paths_collapse_and_distances_count_edits():
    assert collapse(np.array([0, 3, 3, 0, 3, 2, 2]), blank=0) == [3, 3, 2]
    assert edit_distance("kitten", "sitting") == 3
    assert edit_distance([], ["a", "b"]) == 2


@pytest.mark.parametrize(
    ("metric", "outputs", "expected"),
    [
        ("top1", ("logits", "pred_boxes"), "logits"),
        ("cosine", ("logits", "pred_boxes"), "logits"),
        ("cosine", ("last_hidden_state", "pooler_output"), "last_hidden_state"),
        ("kl", ("start_logits", "end_logits"), "start_logits"),
        ("kl:end_logits", ("start_logits", "end_logits"), "end_logits"),
        ("mrr", ("last_hidden_state", "pooler_output"), "last_hidden_state"),
    ],
)
def test_the_output_of_a_metric_follows_from_its_kind(metric, outputs, expected):
    assert output_of(metric, outputs) == expected


@pytest.mark.parametrize(
    ("metric", "outputs", "classes", "reason"),
    [
        ("kl", ("depth", "normals"), None, "scores `logits`, and the model has the outputs"),
        ("top1", ("logits",), 1, "compares classes, and the model's `logits` are one score"),
        ("mse", ("logits",), 4, "compares one score per sample, and the model has 4 classes"),
        ("cosine:other", ("logits",), 4, "scores `other`, and the model has the outputs logits"),
        ("wer", ("last_hidden_state",), None, "compares texts, which follow from logits"),
    ],
)
def test_metrics_that_do_not_fit_are_named(metric, outputs, classes, reason):
    assert reason in str(misfit(metric, outputs, classes))


@pytest.mark.parametrize(
    ("outputs", "classes", "expected"),
    [
        (("logits",), 4, ("agreement", "kl")),
        (("logits",), 1, ("correlation",)),
        (("logits", "pred_boxes"), None, ("agreement", "kl", "cosine:pred_boxes")),
        (("embedding",), None, ("cosine",)),
        (("last_hidden_state", "pooler_output"), None, None),
    ],
)
def test_fitting_metrics_fit(outputs, classes, expected):
    metrics = fitting_metrics(outputs, classes)
    assert expected is None or metrics == expected
    assert metrics
    assert [misfit(metric, outputs, classes) for metric in metrics] == [None] * len(metrics)


def test_integers_are_equal_or_not():
    ids = OutputSpec("ids", "int64", ("n", 32, 32))
    assert fitting_metrics(("ids",), 32, (ids,)) == ("equal:ids",)
    boxes = OutputSpec("boxes", "float32", ("n", 4))
    assert fitting_metrics(("boxes", "ids"), None, (boxes, ids)) == ("cosine:boxes", "equal:ids")
    assert "`equal:ids` compares these" in str(misfit("agreement", ("ids",), None, (ids,)))
