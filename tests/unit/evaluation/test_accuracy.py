import numpy as np
import pytest

from compressor.data.contract import Dataset
from compressor.errors import DataError, NumericalError, UsageError
from compressor.evaluation.accuracy import measure_accuracy
from compressor.evaluation.records import AccuracyConfig
from compressor.models.contract import InputSpec
from compressor.runtimes.session import Session


class Echo(Session):
    """Answers with its input."""

    runtime, output_names = "echo 1", ("logits",)
    inputs = (InputSpec("x", "float64", ("batch", 2)),)

    def compute(self, feeds):
        return {"logits": feeds["x"]}


class Fixed(Dataset):
    input_names, label_name = ("x",), "label"

    def __init__(self, x, label, slices=None):
        self.x, self.label, self.named = np.asarray(x, float), np.asarray(label), slices or {}

    def __len__(self):
        return len(self.x)

    def batch(self, indices, epoch=0):
        return {"x": self.x[indices], "label": self.label[indices]}

    def slices(self):
        return self.named


SLICES = {"input": np.array(["text", "text", "speech", "speech"]), "language": np.array(["zh", "en", "zh", "en"])}
DATA = Fixed([[1, 0], [1, 0], [0, 1], [0, 1]], [0, 0, 0, 1], SLICES)


def measured(data=DATA, **config):
    return measure_accuracy(Echo(), data, AccuracyConfig(data="test", **config), lambda *_: None)


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
        (Fixed([[0, 1]], [2]), DataError, "labels of 'test' go from 2 to 2; the model has 2 classes"),
        (Fixed([[np.nan, 1], [0, 1]], [0, 0]), NumericalError, "answers 1 of 2 samples of 'test' with NaN"),
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
