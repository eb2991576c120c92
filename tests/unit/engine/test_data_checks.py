from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from calibration.sources.python import Python, PythonConfig
from compressor.artifacts.store import Store
from compressor.data.contract import DataFacts, Dataset, InputFacts, SourceContext
from compressor.engine.plan.pipeline import load_pipeline
from compressor.engine.plan.plan import Plan
from compressor.engine.plan.planner import make_plan
from compressor.engine.run.runner import Runner
from compressor.errors import ConfigError, DataError
from tests.support.engines import node
from tests.support.foreign_graphs import graph

HEAD = """version: 1
name: checks
model: {family: image-classifier, preset: tiny}
data:
  labelled: {source: python, path: samples.py}
  bare: {source: python, path: samples.py, arguments: {label: false}}
  large: {source: python, path: samples.py, arguments: {size: 20}}
"""
SAMPLES = """
import numpy as np

def load(label=True, size=16, count=8, values=256):
    generator = np.random.default_rng(0)
    image = generator.integers(0, values, (count, 3, size, size))
    arrays = {"image": image.astype(np.uint8 if values == 256 else np.int64)}
    return arrays | ({"label": np.arange(count) % 4} if label else {})
"""
TRAIN = "{type: train, train: labelled, validation: null, training: {steps: 1, batch_size: 4}}"

PRUNE = "{type: prune, target: {macs: 90%}, multiple: 1"


def write(folder: Path, *steps: str, evaluate: str = "") -> Path:
    (folder / "samples.py").write_text(SAMPLES)
    file = folder / "pipeline.yaml"
    lines = "".join(f"  - {step}\n" for step in steps)
    file.write_text(f"{HEAD}{evaluate}passes:\n{lines}")
    return file


def plan(file: Path) -> Plan:
    pipeline = load_pipeline(file)
    return make_plan(pipeline, Store(file.parent / "store"), SourceContext(pipeline.base, True))


def run(file: Path) -> None:
    planned = plan(file)
    selected = frozenset(step.name for step in planned.steps)
    Runner(planned, lambda _: None, lambda *_: None, selected=selected).run()


def refusal(file: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        run(file)
    return str(caught.value)


def built(folder: Path) -> list[str]:
    return [path.name for path in (folder / "store").glob("*-*")]


def test_missing_labels_of_the_last_step_are_found_before_the_first(tmp_path: Path) -> None:
    file = write(
        tmp_path,
        TRAIN,
        "{type: prune, target: {macs: 90%}, calibration: bare}",
        "{type: train, name: again, train: bare, validation: bare}",
    )
    text = refusal(file)
    assert built(tmp_path) == []
    assert "pipeline.yaml:10: passes[1].calibration: data set 'bare' has no labels" in text
    assert "which `importance: taylor` needs" in text
    assert "set `importance: activation`" in text
    assert "pipeline.yaml:11: passes[2].train: data set 'bare' has no labels" in text
    assert "pipeline.yaml:11: passes[2].validation: data set 'bare' has no labels" in text
    assert "set `validation: null`" in text


@pytest.mark.parametrize(
    "step",
    [
        f"{PRUNE}, calibration: bare, importance: activation}}",
        f"{PRUNE}, calibration: bare, importance: magnitude}}",
        "{type: distill, student: {slim: tiny}, train: bare, validation: null, soft_weight: 1, "
        "training: {steps: 1, batch_size: 4}}",
    ],
)
def test_labels_are_not_demanded_where_nothing_needs_them(tmp_path: Path, step: str) -> None:
    run(write(tmp_path, step))


def test_sizes_that_do_not_fit_are_found_before_the_first_step(tmp_path: Path) -> None:
    text = refusal(write(tmp_path, TRAIN, TRAIN.replace("labelled", "large, name: second")))
    assert built(tmp_path) == []
    assert "passes[1].train: data set 'large': image: shape [1, 3, 20, 20]" in text
    assert "name a data set in `train` that was made for this model" in text


def test_measured_data_sets_are_checked_before_the_first_step(tmp_path: Path) -> None:
    evaluate = "evaluate:\n  accuracy: {data: bare}\n  latency: {data: large}\n"
    text = refusal(write(tmp_path, TRAIN, evaluate=evaluate))
    assert built(tmp_path) == []
    assert "pipeline.yaml:9: evaluate.accuracy.data: data set 'bare' has no labels" in text
    assert "set `metrics: [agreement, kl]`" in text
    assert "pipeline.yaml:10: evaluate.latency.data: data set 'large': image: shape" in text


def test_a_metric_of_another_output_is_refused_with_the_metrics_that_fit(tmp_path: Path) -> None:
    evaluate = "evaluate:\n  accuracy: {data: labelled, metrics: [top1, 'cosine:boxes']}\n"
    with pytest.raises(ConfigError, match="cosine:boxes scores `boxes`, and the model") as caught:
        plan(write(tmp_path, TRAIN, evaluate=evaluate))
    assert "set `metrics: [top1]`" in str(caught.value)


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        (DataFacts(has_labels=False), "has no labels, which `type: train` needs"),
        (DataFacts(num_samples=0), "data set 'labelled' is empty"),
        (
            DataFacts((InputFacts("tokens", "int64", (None,)),)),
            "has inputs that the model does not take: tokens; it takes image",
        ),
        (
            DataFacts((InputFacts("tokens", "int64", (None,)),)),
            "lacks inputs of the model: image; it has tokens",
        ),
        (
            DataFacts((InputFacts("tokens", "int64", (None,)),), more_inputs={"image": "sees: 1"}),
            "set `sees: 1` in `data.labelled`",
        ),
        (
            DataFacts((InputFacts("image", "uint8", (3, 8, None)),)),
            r"a sample has the shape \[3, 8, \?\], expected \[3, 16, 16\]",
        ),
    ],
)
def test_facts_of_a_data_set_are_compared_while_planning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, facts: DataFacts, message: str
) -> None:
    monkeypatch.setattr(Python, "facts", lambda *_: facts)
    with pytest.raises(ConfigError, match=message) as caught:
        plan(write(tmp_path, TRAIN))
    assert "pipeline.yaml:9: passes[0].train" in str(caught.value)


def test_ids_beyond_the_table_are_named_with_their_tokenizer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = InputFacts("input_ids", "int64", (32,), 5000, "tokenizer tok/tokenizer.json")
    mask = InputFacts("attention_mask", "int64", (32,), 1)
    monkeypatch.setattr(Python, "facts", lambda *_: DataFacts((tokens, mask)))
    file = write(tmp_path, "{type: qat, calibration: {data: bare}}")
    text = file.read_text().replace("image-classifier", "sentence-encoder")
    file.write_text(text)
    with pytest.raises(
        ConfigError, match=r"tok/tokenizer.json has ids up to 5000; the table .* has \d+ rows"
    ) as caught:
        plan(file)
    assert "pipeline.yaml:9: passes[0].calibration.data" in str(caught.value)


def test_too_few_calibration_samples_are_an_error(tmp_path: Path) -> None:
    step = (
        "{type: awq, format: compressed-tensors, group_size: 8, "
        "calibration: {data: bare, num_samples: 9}}"
    )
    text = refusal(write(tmp_path, TRAIN, step))
    assert "data set 'bare' has 8 samples, fewer than `calibration.num_samples` (9)" in text
    assert "set `calibration.num_samples: 8`" in text


def test_a_batch_that_does_not_fit_is_refused_where_it_enters_a_pass(tmp_path: Path) -> None:
    file = write(tmp_path, TRAIN)
    file.with_name("samples.py").write_text(
        SAMPLES
        + """
from compressor.data.contract import Dataset

class Uneven(Dataset):
    input_names, label_name = ("image",), "label"
    def __len__(self):
        return 8
    def batch(self, indices, epoch=0):
        size = 16 if len(indices) == 1 else 20
        return {
            "image": np.zeros((len(indices), 3, size, size), np.uint8), "label": indices % 4
        }

def load(**_):
    return Uneven()
"""
    )
    with pytest.raises(DataError, match=r"data set 'labelled', samples \d to \d: image: shape"):
        run(file)


def test_each_data_set_is_opened_once_and_none_if_nothing_is_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    load = Python.load

    def count(self: Python, config: PythonConfig, context: SourceContext) -> Dataset:
        opened.append(str(config.arguments))
        return load(self, config, context)

    monkeypatch.setattr(Python, "load", count)
    file = write(tmp_path, TRAIN, TRAIN.replace("{type: train", "{type: train, name: again"))
    run(file)
    assert opened == ["{}"]
    run(file)
    assert opened == ["{}"]


def test_samples_of_any_shape_fit_an_input_without_one(tmp_path: Path) -> None:
    model = graph([node("Relu", "x", "y")], {}, {"x": None}, {"y": None})
    onnx.save(model, tmp_path / "model.onnx")
    np.savez(tmp_path / "samples.npz", x=np.ones((4, 3, 5), np.float32))
    file = tmp_path / "pipeline.yaml"
    file.write_text(
        "version: 1\nname: open\nmodel: {path: model.onnx}\n"
        "data: {samples: {source: arrays, path: samples.npz}}\n"
        "evaluate: {accuracy: {data: samples, metrics: [cosine]}}\n"
        "passes: [{type: optimize-onnx, precision: fp32}]\n"
    )
    assert [step.name for step in plan(file).steps] == ["source", "optimize-onnx"]
