"""Tests of metrics of classes on outputs of any name: axis, probabilities, and refusals."""

import numpy as np
import pytest

from compressor.data.contract import Dataset
from compressor.errors import DataError
from compressor.evaluation.accuracy import measure_accuracy
from compressor.evaluation.outputs import misfit
from compressor.evaluation.records import AccuracyConfig
from compressor.models.capabilities.signature import InputSpec, OutputSpec
from compressor.runtimes.session import Session

RANDOM = np.random.default_rng(0)


def softmax(logits, axis=-1):
    powers = np.exp(logits - logits.max(axis=axis, keepdims=True))
    return powers / powers.sum(axis=axis, keepdims=True)


class Outputs(Session):
    """Outputs rows of arrays by the index that is its input."""

    runtime = "rows 1"
    inputs = (InputSpec("index", "int64", ("rows",)),)

    def __init__(self, **arrays):
        self.arrays = arrays
        self.output_names = tuple(arrays)

    def compute(self, feeds):
        return {name: array[feeds["index"]] for name, array in self.arrays.items()}


class Indices(Dataset):
    input_names = ("index",)

    def __init__(self, count, label=None):
        self.count, self.label = count, label
        self.label_name = None if label is None else "label"

    def __len__(self):
        return self.count

    def batch(self, indices, epoch=0):
        labels = {} if self.label is None else {"label": self.label[indices]}
        return {"index": indices, **labels}


def report(metrics, model, reference=None, label=None):
    model = Outputs(**model)
    config = AccuracyConfig(data="test", metrics=metrics, bootstrap=0, batch_size=4)
    data = Indices(len(next(iter(model.arrays.values()))), label)
    compared = None if reference is None else Outputs(**reference)
    return measure_accuracy(model, data, config, lambda *_: None, compared)


def values_of(*arguments, **named):
    return {metric.name: metric.value for metric in report(*arguments, **named).metrics}


LOGITS = RANDOM.normal(size=(8, 5)).astype(np.float32) * 3
OTHER = LOGITS + RANDOM.normal(size=(8, 5)).astype(np.float32)
EXPECTED = values_of(("kl", "agreement"), {"logits": OTHER}, {"logits": LOGITS})


@pytest.mark.parametrize("named", [("kl:x", "agreement:x"), ("kl", "agreement")])
@pytest.mark.parametrize("form", [np.asarray, softmax])
def test_logits_and_probabilities_of_any_name_give_the_same_metrics(form, named):
    result = report(named, {"x": form(OTHER)}, {"x": form(LOGITS)})
    assert [metric.value for metric in result.metrics] == pytest.approx(
        list(EXPECTED.values()), rel=1e-5
    )
    read_as = "logits" if form is np.asarray else "probabilities, since they sum to 1"
    assert result.notes == (
        f"{', '.join(named)}: `x` has 5 classes in the last axis of [N, 5], read as {read_as}",
    )


def test_cross_entropy_of_probabilities_is_not_softmaxed_again():
    label = np.arange(8) % 5
    by_logits = values_of(("cross_entropy",), {"logits": LOGITS}, label=label)
    by_probabilities = values_of(("cross_entropy:p",), {"p": softmax(LOGITS)}, label=label)
    assert by_probabilities["cross_entropy:p"] == pytest.approx(by_logits["cross_entropy"])
    output = values_of(("cross_entropy",), {"logits": softmax(LOGITS)}, label=label)
    assert output["cross_entropy"] == pytest.approx(by_logits["cross_entropy"])


def test_probabilities_that_were_rounded_to_8_bits_are_normalized():
    rounded = np.round(softmax(LOGITS) * 255).astype(np.float32) / 255
    kl = values_of(("kl:p",), {"p": rounded}, {"p": softmax(LOGITS)})["kl:p"]
    assert 0 <= kl < 1


@pytest.mark.parametrize(
    ("model", "reference"), [(OTHER, softmax(LOGITS)), (softmax(OTHER), LOGITS)]
)
def test_probabilities_are_not_compared_with_logits(model, reference):
    with pytest.raises(DataError, match=r"`x` of the reference holds .* and that of the model"):
        report(("kl:x",), {"x": model}, {"x": reference})
    assert "agreement:x" in values_of(("agreement:x",), {"x": model}, {"x": reference})


def test_independent_scores_are_no_distribution():
    scores = 1 / (1 + np.exp(-LOGITS))
    with pytest.raises(DataError, match=r"kl:s compares distributions, .* do not sum to 1"):
        report(("kl:s",), {"s": scores}, {"s": scores})
    assert values_of(("agreement:s",), {"s": scores}, {"s": scores}) == {"agreement:s": 1}


MAPS = RANDOM.normal(size=(8, 3, 4, 6))
RIGHT = np.stack([MAPS[:, 0], MAPS[:, 1] + 9, MAPS[:, 2]], axis=1)


@pytest.mark.parametrize(
    ("first", "second"), [(MAPS, RIGHT), (softmax(MAPS, 1), softmax(RIGHT, 1))]
)
def test_classes_of_a_dense_map_are_axis_1(first, second):
    expected = (first.argmax(axis=1) == second.argmax(axis=1)).mean()
    result = report(("agreement:map",), {"map": first}, {"map": second})
    assert result.metrics[0].value == pytest.approx(expected)
    assert "3 classes in axis 1 of [N, 3, 4, 6]" in result.notes[0]


def test_probabilities_show_the_axis_of_the_classes():
    last = softmax(MAPS)
    assert "6 classes in the last axis" in report(("kl:a",), {"a": last}, {"a": last}).notes[0]
    first = softmax(RANDOM.normal(size=(8, 3, 7)), 1)
    assert "3 classes in axis 1" in report(("kl:a",), {"a": first}, {"a": first}).notes[0]


def test_labels_show_the_axis_of_the_classes():
    logits = RANDOM.normal(size=(8, 3, 7))
    label = logits.argmax(axis=1)
    assert values_of(("top1:a",), {"a": logits}, label=label) == {"top1:a": 1}


BOXES = np.concatenate([RANDOM.uniform(0, 416, (8, 4, 9)), RANDOM.uniform(0, 1, (8, 3, 9))], 1)
NMS = np.concatenate(
    [
        RANDOM.uniform(0, 416, (8, 9, 4)),
        RANDOM.uniform(0, 1, (8, 9, 1)),
        RANDOM.integers(0, 5, (8, 9, 1)),
    ],
    2,
)


@pytest.mark.parametrize(
    ("output", "why"),
    [
        (RANDOM.uniform(size=(8, 1, 4, 4)), "has one channel"),
        (BOXES, r"holds boxes and class scores \(4 \+ 3\)"),
        (BOXES.transpose(0, 2, 1), r"holds boxes and class scores \(4 \+ 3\)"),
        (NMS, "holds boxes with the id of a class each"),
        (RANDOM.normal(size=(8, 5, 5)), "is a map of one value"),
        (RANDOM.integers(0, 9, (8, 5)), "holds int64 values"),
        (RANDOM.normal(size=(8,)), "has one value per sample"),
    ],
)
def test_outputs_without_classes_are_refused_with_the_metrics_to_use(output, why):
    with pytest.raises(DataError, match=why) as raised:
        report(("agreement:x",), {"x": output}, {"x": output})
    assert raised.value.remedy
    values = values_of(("relative_error:x",), {"x": output}, {"x": output})
    assert values == {"relative_error:x": 0}


def test_a_bare_metric_means_the_only_output_if_that_is_of_one_class_per_sample():
    tokens = softmax(RANDOM.normal(size=(8, 3, 7)))
    with pytest.raises(DataError, match=r"kl names no output, .* `x` .* is not \[N, classes\]"):
        report(("kl",), {"x": tokens}, {"x": tokens})
    both = {"a": LOGITS, "b": LOGITS}
    with pytest.raises(DataError, match="the outputs a, b; name one, as in `kl:a`"):
        report(("kl",), both, both)


@pytest.mark.parametrize(
    ("metric", "spec", "why"),
    [
        ("kl", OutputSpec("x", "float32", ("n", 7)), None),
        ("kl:x", OutputSpec("x", "float32", ("n", "t", 7)), None),
        ("kl:x", OutputSpec("x", "float32", None), None),
        ("kl", OutputSpec("x", "float32", ("n", "t", 7)), "is not [N, classes]"),
        ("kl:x", OutputSpec("x", "float32", (1, "frames")), "varies"),
        ("agreement:x", OutputSpec("x", "float32", ("n", 1, "h", "w")), "has one channel"),
        ("top1:x", OutputSpec("x", "int64", ("n", 7)), "holds int64 values"),
    ],
)
def test_the_plan_knows_declared_outputs(metric, spec, why):
    reason = misfit(metric, ("x",), None, (spec,))
    assert reason is None if why is None else why in str(reason)


class Recording(Session):
    """A model of one recording: no axis of the samples, in or out."""

    runtime, output_names = "recording 1", ("frames", "total")
    inputs = (InputSpec("audio", "float32", ("time",)), InputSpec("rate", "int64", ()))
    outputs = (OutputSpec("frames", "", ("time", 3)), OutputSpec("total", "", None))

    def compute(self, feeds):
        assert feeds["audio"].ndim == 1
        assert feeds["rate"].ndim == 0
        frames = feeds["audio"][:, None] * np.arange(3, dtype=np.float32)
        return {"frames": frames, "total": frames.sum()}


class Recordings(Dataset):
    input_names, label_name = ("audio", "rate"), None

    def __len__(self):
        return 4

    def batch(self, indices, epoch=0):
        audio = RANDOM.normal(size=(len(indices), 5)).astype(np.float32)
        return {"audio": audio, "rate": np.full(len(indices), 16000)}


def test_models_without_a_batch_axis_are_called_sample_by_sample():
    config = AccuracyConfig(data="d", metrics=("relative_error:frames", "max_abs:total"))
    model = Recording()
    result = measure_accuracy(model, Recordings(), config, lambda *_: None, model)
    assert [(metric.value, metric.samples) for metric in result.metrics] == [(0, 4), (0, 4)]
    assert "the input `audio` has no batch axis" in result.notes[0]


class Pairs(Outputs):
    inputs = (InputSpec("index", "int64", (2,)),)


def test_a_fixed_batch_is_used_as_it_is():
    model = Pairs(x=LOGITS)
    config = AccuracyConfig(data="d", metrics=("agreement",), bootstrap=0)
    result = measure_accuracy(model, Indices(8), config, lambda *_: None, model)
    assert (result.samples, result.metrics[0].value) == (8, 1)
    assert "the model takes 2 samples per call" in result.notes[0]
    with pytest.raises(DataError, match="takes exactly 2 samples, and 7 are measured"):
        measure_accuracy(model, Indices(7), config, lambda *_: None, model)
    with pytest.raises(DataError, match="takes exactly 2 samples, and there are 1") as error:
        measure_accuracy(model, Indices(1), config, lambda *_: None, model)
    assert "of at least 2 samples" in error.value.remedy
