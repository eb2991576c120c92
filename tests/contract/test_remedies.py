"""Remedies are true: doing what an error message proposes changes the outcome."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from compressor.artifacts.store import Store
from compressor.data.contract import SourceContext
from compressor.engine.plan.pipeline import load_pipeline
from compressor.engine.plan.planner import make_plan
from compressor.engine.run.runner import Runner
from compressor.errors import CompressError
from compressor.models.families.image_classifier.config import TINY
from tests.support.tiny_files import tiny_onnx
from tests.support.tiny_models import CLASSIFIER, build_model

PIPELINE = """version: 1
name: mistakes
model: {family: image-classifier, preset: tiny, measure: false}
data:
  labelled: {source: python, path: samples.py}
  bare: {source: python, path: samples.py, arguments: {label: false}}
  large: {source: python, path: samples.py, arguments: {size: 20}}
  wide: {source: python, path: samples.py, arguments: {size: 64}}
passes: []
"""
SAMPLES = """
import numpy as np

def load(label=True, size=16):
    image = np.random.default_rng(0).integers(0, 256, (8, 3, size, size)).astype(np.uint8)
    return {"image": image} | ({"label": np.arange(8) % 4} if label else {})
"""
TRAINING = "training: {steps: 1, batch_size: 4}"
TRAIN = f"{{type: train, train: labelled, validation: null, {TRAINING}}}"
QAT = "{type: qat, calibration: {data: bare}}"
EXPORT = "{type: export-onnx, parity: {data: bare}}"
ENGINE = "{type: tensorrt, backend: rtx, precision: fp32, targets: [sm86]}"
PACK = "type: awq, format: compressed-tensors, calibration: {data: bare, num_samples: 8}"
DISTILL = f"{{type: distill, student: {{slim: tiny}}, train: bare, validation: null, {TRAINING}"
VIT = "model={family: image-classifier, preset: small-vit, measure: false}"
CUT = "type: prune, target: {macs: 90%}, multiple: 1"


@dataclass(frozen=True)
class Mistake:
    """A mistake, what its remedy says, and the same pipeline after the remedy."""

    wrong: tuple[str, ...]
    """Overrides of the pipeline."""
    remedy: str
    """Part of the remedy."""
    right: tuple[str, ...]
    """Overrides that do what the remedy says."""
    then: str = ""
    """Part of the next message; empty if there is no error any more."""
    runs: bool = False
    """True if the mistake is found in a run."""


def steps(*passes: str) -> str:
    return f"passes=[{', '.join(passes)}]"


def accuracy(data: str, metrics: str) -> str:
    return f"evaluate={{accuracy: {{data: {data}, metrics: [{metrics}]}}}}"


MISTAKES = {
    "qat of an ONNX file": Mistake(
        ("model={path: model.onnx}", steps(QAT)),
        "let it read a torch model: that which the onnx model was made from, as `model.path`",
        ("model={path: torch}", steps(QAT)),
    ),
    "an engine of a torch model": Mistake(
        (steps(ENGINE),),
        "put a step of export-onnx before it",
        (steps(EXPORT, ENGINE),),
        then="profiles",
    ),
    "qat of packed weights": Mistake(
        (steps(f"{{{PACK}, group_size: 8}}", QAT),),
        "let it read another step: `from: source`",
        (
            steps(
                f"{{{PACK}, group_size: 8}}", QAT.replace("{type: qat", "{type: qat, from: source")
            ),
        ),
    ),
    "a pickle": Mistake(
        ("model={path: weights.pt}",),
        "save the model",
        ("model={path: torch}",),
    ),
    "a path from another folder": Mistake(
        ("model={path: elsewhere/torch}",),
        "`model.path` is relative to the pipeline file",
        ("model={path: torch}",),
    ),
    "a misspelt field": Mistake(
        (steps("{type: train, trian: labelled, validation: null}"),),
        "did you mean 'train'?",
        (steps("{type: train, train: labelled, validation: null}"),),
    ),
    "a misspelt pass": Mistake(
        (steps(QAT.replace("qat", "qta")),), "did you mean 'qat'?", (steps(QAT),)
    ),
    "a misspelt data set": Mistake(
        (steps(QAT.replace("bare", "bear")),), "did you mean 'bare'?", (steps(QAT),)
    ),
    "two steps of one name": Mistake(
        (steps(TRAIN, TRAIN),),
        "give the step a `name:` of its own",
        (steps(TRAIN, TRAIN.replace("{type: train", "{type: train, name: again")),),
    ),
    "a step that reads a later one": Mistake(
        (
            steps(
                "{type: train, name: a, from: b, train: labelled, validation: null}",
                "{type: train, name: b, from: source, train: labelled, validation: null}",
            ),
        ),
        "move that step up",
        (
            steps(
                "{type: train, name: b, from: source, train: labelled, validation: null}",
                "{type: train, name: a, from: b, train: labelled, validation: null}",
            ),
        ),
    ),
    "pruning by the loss without labels": Mistake(
        (steps(f"{{{CUT}, calibration: bare}}"),),
        "set `importance: activation`",
        (steps(f"{{{CUT}, calibration: bare, importance: activation}}"),),
        runs=True,
    ),
    "pruning without samples": Mistake(
        (steps(f"{{{CUT}}}"),),
        "name a set in `calibration`",
        (steps(f"{{{CUT}, calibration: labelled}}"),),
    ),
    "top1 without labels": Mistake(
        (steps(QAT.replace("}}", "}, keep_float: {data: bare}}")),),
        "set `keep_float.metric: agreement`",
        (
            steps(
                QAT.replace("}}", "}, keep_float: {data: bare, metric: agreement, max_drop: 0.9}}")
            ),
        ),
        runs=True,
    ),
    "validation without labels": Mistake(
        (steps(f"{{type: train, train: labelled, validation: bare, {TRAINING}}}"),),
        "set `validation: null`",
        (steps(TRAIN),),
        runs=True,
    ),
    "training on labels that are not there": Mistake(
        (steps(f"{DISTILL}}}"),),
        "set `soft_weight: 1`",
        (steps(f"{DISTILL}, soft_weight: 1}}"),),
        runs=True,
    ),
    "accuracy without labels": Mistake(
        (accuracy("bare", "top1"), "model.measure=true"),
        "set `metrics: [agreement, kl]`",
        (accuracy("bare", "agreement, kl"), "model.measure=true"),
        runs=True,
    ),
    "an output that the model lacks": Mistake(
        (accuracy("labelled", "top1, cosine:boxes"), "model.measure=true"),
        "set `metrics: [top1]`",
        (accuracy("labelled", "top1"), "model.measure=true"),
    ),
    "pictures of another size": Mistake(
        (steps(QAT.replace("bare", "large")),),
        "name a data set in `calibration.data` that was made for this model",
        (steps(QAT),),
        runs=True,
    ),
    "too few calibration samples": Mistake(
        (steps(f"{{{PACK}, group_size: 8}}".replace("num_samples: 8", "num_samples: 9")),),
        "set `calibration.num_samples: 8`",
        (steps(f"{{{PACK}, group_size: 8}}"),),
        then="no linear layer",
        runs=True,
    ),
    "packed weights of convolutions": Mistake(
        (steps(f"{{{PACK}, group_size: -1}}"),),
        "with `type: qat`",
        (steps(QAT),),
        runs=True,
    ),
    "a group size that divides no layer": Mistake(
        (VIT, steps(f"{{{PACK}, group_size: 7}}".replace("bare", "wide"))),
        "set `group_size` to one with which a layer fits: 128, 64",
        (VIT, steps(f"{{{PACK}, group_size: 64}}".replace("bare", "wide"))),
        runs=True,
    ),
    "a format of checkpoints alone": Mistake(
        (steps("{type: awq, group_size: 8, calibration: {data: bare, num_samples: 8}}"),),
        "set `format: compressed-tensors`",
        (steps(f"{{{PACK}, group_size: 8}}"),),
    ),
    "an engine in FP16 without samples": Mistake(
        (steps(EXPORT, "{type: tensorrt, backend: rtx, targets: [sm86]}"),),
        "`floats: fp32`",
        (steps(EXPORT, ENGINE),),
        then="profiles",
    ),
    "an engine without targets": Mistake(
        (steps(EXPORT, ENGINE.replace(", targets: [sm86]", "")),),
        "set `targets: [sm86]`",
        (steps(EXPORT, ENGINE),),
        then="profiles",
    ),
    "integers of tables that are not there": Mistake(
        (steps(QAT.replace("}}", "}, quantize_embeddings: true}")),),
        "leave `quantize_embeddings` out",
        (steps(QAT),),
    ),
    "a gate on what is not measured": Mistake(
        ("gates=[{metric: parameter, max: 9000}]",),
        "did you mean 'parameters'?",
        ("gates=[{metric: parameters, max: 9000}]",),
    ),
    "patience without evaluations": Mistake(
        (steps("{type: train, train: labelled, validation: labelled, training: {patience: 2}}"),),
        "set `evaluate_every`",
        (
            steps(
                "{type: train, train: labelled, validation: labelled, "
                "training: {patience: 2, evaluate_every: 5}}"
            ),
        ),
    ),
}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    CLASSIFIER.save(build_model(CLASSIFIER, TINY), TINY, _new(tmp_path / "torch"))
    (tmp_path / "model.onnx").write_bytes(tiny_onnx())
    (tmp_path / "weights.pt").write_bytes(b"\x80\x04K\x01.")
    (tmp_path / "samples.py").write_text(SAMPLES)
    file = tmp_path / "pipeline.yaml"
    file.write_text(PIPELINE)
    return file


def _new(folder: Path) -> Path:
    folder.mkdir()
    return folder


def outcome(file: Path, sets: tuple[str, ...], *, runs: bool, allow_code: bool = True) -> str:
    """Return the message of the plan, or of the run; empty if there is no error."""
    try:
        pipeline = load_pipeline(file, sets)
        context = SourceContext(pipeline.base, allow_code, file.parent / "cache")
        plan = make_plan(pipeline, Store(file.parent / "store"), context)
        if runs:
            selected = frozenset(step.name for step in plan.steps)
            Runner(plan, lambda _: None, lambda *_: None, selected=selected).run()
    except CompressError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("name", MISTAKES)
def test_the_outcome_changes_if_the_remedy_is_followed(name: str, file: Path) -> None:
    mistake = MISTAKES[name]
    message = outcome(file, mistake.wrong, runs=mistake.runs)
    remedies = [line.partition("→")[2] for line in message.splitlines() if "→" in line]
    assert mistake.remedy in message
    assert remedies or mistake.remedy in message
    built = [path.name.partition("-")[0] for path in (file.parent / "store").glob("*-*")]
    assert set(built) <= {"source"}
    after = outcome(file, mistake.right, runs=mistake.runs)
    if mistake.then:
        assert mistake.then in after
        assert mistake.remedy not in after
    else:
        assert after == ""


def test_code_runs_once_it_is_allowed(file: Path) -> None:
    assert "allow it with --allow-code" in outcome(
        file, (steps(QAT),), runs=False, allow_code=False
    )
    assert outcome(file, (steps(QAT),), runs=False) == ""
