"""The pass on the command line: the preview equals the result, and mistakes stop it early."""

import json
import tempfile

import pytest
import torch

from compressor.artifacts.store import Store
from compressor.data.contract import SourceContext
from compressor.engine.events import StepProgress, StepStarted
from compressor.engine.plan.planner import make_plan
from compressor.engine.run.single_pass import preview, single_pass
from compressor.errors import PassError
from compressor.models.capabilities.cuttable_axes import replace_fields
from compressor.models.checkpoint.loading import load_module
from compressor.models.facts import facts_of
from passes.prune.step import Prune
from tests.support.cli import cli
from tests.support.tiny_files import draw_pictures
from tests.support.tiny_models import CLASSIFIER

PIPELINE = """\
version: 1
name: pictures
threads: 1
model:
  family: image-classifier
  preset: small
  config: {num_classes: 2, image_size: 16}
  measure: false
data:
  train: {source: images, path: pictures, image_size: 16}
passes:
  - {type: train, name: teacher, validation: null, training: {steps: 30, batch_size: 8}}
  - {type: prune, name: smaller, target: {macs: 60%}, calibration: train, num_samples: 12}
  - type: distill
    name: recovered
    student: {parent: true}
    teacher: teacher
    validation: null
    training: {steps: 10, batch_size: 8}
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    home = tmp_path_factory.mktemp("prune")
    draw_pictures(home / "pictures", 8)
    (home / "pipeline.yaml").write_text(PIPELINE)
    process = cli("run", home / "pipeline.yaml", "-o", home / "store")
    assert process.returncode == 0, process.stderr
    return home


def run_pass(home, name, fields, *options, pipeline="pipeline.yaml"):
    (teacher,) = home.glob("store/train-*")
    assignments = [argument for field in fields for argument in ("--set", field)]
    places = ["-p", home / pipeline, "-o", home / "by-hand"]
    return cli("pass", name, teacher, *places, *assignments, *options)


def prune(home, *fields):
    return run_pass(home, "prune", fields, "--json")


def decisions(home, *fields):
    """Return the rows of a dry run by field."""
    process = run_pass(home, "prune", fields, "--json", "--dry-run")
    assert process.returncode == 0, process.stderr
    return json.loads(process.stdout)["decisions"]


def latest(home):
    return max(home.glob("by-hand/prune-*"), key=lambda path: path.stat().st_mtime)


def test_the_model_is_smaller_and_its_config_states_the_new_sizes(home):
    (teacher,), (smaller,) = home.glob("store/train-*"), home.glob("store/prune-*")
    before, after = facts_of(teacher / "model"), facts_of(smaller / "model")
    assert after.macs <= 0.6 * before.macs
    module = load_module(smaller / "model", "cpu")
    count = sum(weight.numel() for weight in module.parameters())
    assert count == after.parameters < before.parameters
    widths = [block["expanded"] for block in after.config["vision_blocks"]]
    assert all(width % 8 == 0 for width in widths)
    assert widths != [block["expanded"] for block in before.config["vision_blocks"]]
    (recovered,) = home.glob("store/distill-*")
    assert facts_of(recovered / "model").config == after.config


@pytest.mark.parametrize("importance", ["magnitude", "activation", "entropy", "gradient", "taylor"])
def test_the_dry_run_equals_the_result(home, importance):
    fields = [
        "target.params=0.5",
        f"importance={importance}",
        "calibration=train",
        "num_samples=16",
    ]
    existing = set(home.glob("by-hand/prune-*"))
    rows = {(row["axis"], row["field"]): row for row in decisions(home, *fields)}
    assert set(home.glob("by-hand/prune-*")) == existing
    process = prune(home, *fields)
    assert process.returncode == 0, process.stderr
    artifact = latest(home)
    assert facts_of(artifact / "model").parameters == rows["all", "parameters"]["after"]
    state = load_module(artifact / "model", "cpu").state_dict()
    assert state["vision.last.weight"].shape[0] == rows["vision.last", "vision_width"]["after"]
    manifest = json.loads((artifact / "manifest.json").read_text())
    assert manifest["summary"]["cuts"] == list(rows.values())


def test_stated_dimensions_are_the_dimensions_of_the_result(home):
    process = prune(home, "target.dimensions.vision_width=100", "importance=magnitude")
    assert process.returncode == 0, process.stderr
    assert facts_of(latest(home) / "model").config["vision_width"] == 100


def test_a_target_in_milliseconds_is_met_by_the_sum_of_operators(home):
    fields = ["target.latency_ms=90%", "calibration=train", "latency.repeats=5"]
    rows = {row["field"]: row for row in decisions(home, *fields)}
    assert rows["operators_ms"]["after"] <= 0.9 * rows["operators_ms"]["before"]


def test_with_torch_the_whole_model_is_measured_too(home):
    fields = [
        "target.macs=0.5",
        "calibration=train",
        "latency.repeats=5",
        "latency.runtime=torch",
    ]
    process = run_pass(home, "prune", fields, "--json", "--dry-run")
    if "not faster" in process.stderr:  # Possible for so small a model on a busy machine.
        return
    assert process.returncode == 0, process.stderr
    rows = {row["field"]: row for row in json.loads(process.stdout)["decisions"]}
    assert rows["model_ms"]["before"] > 0
    assert rows["model_ms"]["after"] > 0


def test_the_dry_run_of_rounds_predicts_the_end_and_notes_it(home):
    fields = [
        "target.macs=0.5",
        "calibration=train",
        "recovery.validation=null",
        "recovery.training.steps=5",
    ]
    gradual = [*fields, "schedule.kind=gradual"]
    assert decisions(home, *gradual) == decisions(home, *fields)
    process = run_pass(home, "prune", gradual, "--dry-run")
    assert "each of the 5 rounds scores anew" in process.stderr


@pytest.mark.parametrize("dry_run", [True, False])
@pytest.mark.parametrize(
    ("step", "data_set"),
    [
        (["prune", "target.macs=0.5", "calibration=texts"], "'texts'"),
        (["prune", "target.macs=0.5", "calibration=large"], "'large'"),
        (["train", "train=texts", "validation=large"], "'large'"),
        (["distill", "student.preset=tiny", "train=train", "validation=texts"], "'texts'"),
    ],
)
def test_unsuitable_data_sets_are_reported_before_anything_runs(home, step, data_set, dry_run):
    if dry_run and step[0] != "prune":
        return  # The other passes have no preview.
    text = PIPELINE.replace(
        "passes:\n",
        "  texts: {source: text, path: texts.txt, sequence_length: 8}\n"
        "  large: {source: images, path: pictures, image_size: 24}\n"
        "passes:\n",
    )
    (home / "unsuitable.yaml").write_text(text)
    (home / "texts.txt").write_text("not a picture, but enough for a window\n")
    options = ["--dry-run"] if dry_run else []
    process = run_pass(home, step[0], step[1:], *options, pipeline="unsuitable.yaml")
    assert process.returncode == 2, process.stderr
    assert data_set in process.stderr
    assert "Traceback" not in process.stderr


def test_a_dry_run_shows_what_it_does_and_how_far_it_is(home, tmp_path):
    (teacher,) = home.glob("store/train-*")
    pipeline = single_pass(
        "prune", teacher, home / "pipeline.yaml", ["target.macs=0.5", "importance=magnitude"]
    )
    plan = make_plan(pipeline, Store(tmp_path / "store"), SourceContext(home))
    shown = []
    preview(plan, shown.append)
    assert isinstance(shown[0], StepStarted)
    progress = [event for event in shown if isinstance(event, StepProgress)]
    activities = list(dict.fromkeys(event.what for event in progress))
    assert activities[-3:] == ["load the model", "score units", "search sizes"]
    shares = [event.done for event in progress if event.what == "search sizes"]
    assert shares[0] == 0
    assert shares[-1] > 50


def test_an_unexpected_error_in_a_dry_run_is_reported_with_its_log(home, tmp_path, monkeypatch):
    def fail(*_):
        raise TypeError("unexpected")

    (teacher,) = home.glob("store/train-*")
    pipeline = single_pass(
        "prune", teacher, home / "pipeline.yaml", ["target.macs=0.5", "calibration=train"]
    )
    plan = make_plan(pipeline, Store(tmp_path / "store"), SourceContext(home))
    monkeypatch.setattr(Prune, "preview", fail)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with pytest.raises(PassError, match="failed: TypeError: unexpected") as caught:
        preview(plan, lambda _: None)
    (log,) = tmp_path.glob("*.traceback.txt")
    assert str(log) in str(caught.value)
    assert "raise TypeError" in log.read_text()
    assert not list((tmp_path / "store").glob("*"))


@pytest.mark.parametrize(
    ("fields", "code", "message"),
    [
        (["target.macs=0.7"], 2, "name a set in `calibration`"),
        (
            ["target.macs=0.7", "target.params=0.7", "importance=magnitude"],
            2,
            "not macs and params",
        ),
        (["target.latency_ms=70%", "calibration=train"], 2, "latency_ms needs `latency`"),
        (["target.macs=70 percent", "importance=magnitude"], 2, "target.macs"),
        (["target.macs=0.01", "importance=magnitude"], 1, "no further cut saves anything"),
        (
            ["target.dimensions.vison_width=8", "importance=magnitude"],
            2,
            "did you mean 'vision_width'",
        ),
        (
            ["target.dimensions.vision_width=800", "importance=magnitude"],
            2,
            "not between 1 and 192",
        ),
        (['axes=["heads"]', "target.macs=0.7", "importance=magnitude"], 2, "has no heads to cut"),
    ],
)
def test_a_mistake_is_reported_and_nothing_is_written(home, fields, code, message):
    existing = set(home.glob("by-hand/prune-*"))
    process = prune(home, *fields)
    assert process.returncode == code, process.stderr
    assert message in " ".join(process.stderr.split())
    assert "Traceback" not in process.stderr
    assert set(home.glob("by-hand/prune-*")) == existing


def test_residual_additions_stay_and_no_others_appear():
    config = CLASSIFIER.presets["small"]
    pruned = replace_fields(
        config,
        {("vision_blocks", 1, "out"): 16, ("vision_blocks", 0, "out"): 16, ("vision_stem",): 16},
    )
    residual = [
        block.is_residual(inputs)
        for block, inputs in zip(pruned.vision_blocks, (16, 16, 16, 48), strict=True)
    ]
    assert residual == [False, True, False, True]
    with pytest.raises(ValueError, match="cannot be added"):
        replace_fields(
            config, {("vision_blocks", 1, "out"): 16, ("vision_blocks", 1, "residual"): True}
        )


def test_removed_layers_leave_the_weights_of_the_others_unchanged(home, tmp_path):
    text = PIPELINE.replace("preset: small", "preset: small-vit").split("  - {type: prune")[0]
    (home / "vit.yaml").write_text(text)
    assert cli("run", home / "vit.yaml", "-o", tmp_path).returncode == 0
    (parent,) = tmp_path.glob("train-*")

    def prune_vit(*fields):
        assignments = [argument for field in fields for argument in ("--set", field)]
        places = ["-p", home / "vit.yaml", "-o", tmp_path]
        process = cli("pass", "prune", parent, *places, *assignments, "--json")
        assert process.returncode == 0, process.stderr

    samples = ["calibration=train", "num_samples=16"]
    prune_vit("target.dimensions.vision_layers=2", *samples)
    (pruned,) = tmp_path.glob("prune-*")
    assert facts_of(pruned / "model").config["vision_layers"] == 2
    before, after = (load_module(path / "model", "cpu").state_dict() for path in (parent, pruned))
    first, second = (
        next(
            old
            for old in range(4)
            if torch.equal(
                after[f"vision.layers.{new}.up.weight"], before[f"vision.layers.{old}.up.weight"]
            )
        )
        for new in range(2)
    )
    assert first < second
    prune_vit("target.params=60%", 'axes=["layers"]', *samples)
