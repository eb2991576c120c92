"""The pass from the command line: what the dry run says is what is built; mistakes are told before anything is."""

import json
import subprocess
import sys
import tempfile

import pytest
import torch

from compressor.artifacts.store import Store
from compressor.data.contract import SourceContext
from compressor.engine.plan.planner import make_plan
from compressor.engine.run.single_pass import preview, single_pass
from compressor.errors import PassError
from compressor.models.capabilities.cuttable_axes import replace_fields
from compressor.models.checkpoint.loading import load_module
from compressor.models.facts import facts_of
from compressor.models.families.image_classifier.family import ImageClassifier
from passes.prune.step import Prune
from tests.support.tiny_files import draw_pictures

PIPELINE = """\
version: 1
name: pictures
threads: 1
model: {family: image-classifier, preset: small, config: {num_classes: 2, image_size: 16}, measure: false}
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


def cli(*arguments):
    command = [sys.executable, "-m", "cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    home = tmp_path_factory.mktemp("prune")
    draw_pictures(home / "pictures", 8)
    (home / "pipeline.yaml").write_text(PIPELINE)
    done = cli("run", home / "pipeline.yaml", "-o", home / "store")
    assert done.returncode == 0, done.stderr
    return home


def prune(home, *sets, dry_run=True):
    (teacher,) = home.glob("store/train-*")
    fields = [part for one in sets for part in ("--set", one)]
    options = [
        "-p",
        home / "pipeline.yaml",
        "-o",
        home / "by-hand",
        *fields,
        "--json",
        *(["--dry-run"] if dry_run else []),
    ]
    return cli("pass", "prune", teacher, *options)


def test_the_model_is_smaller_and_its_config_says_so(home):
    (teacher,), (smaller,) = home.glob("store/train-*"), home.glob("store/prune-*")
    before, after = facts_of(teacher / "model"), facts_of(smaller / "model")
    assert after.macs <= 0.6 * before.macs
    module = load_module(smaller / "model", "cpu")
    assert (
        sum(weight.numel() for weight in module.parameters())
        == after.parameters
        < before.parameters
    )
    widths = [block["expanded"] for block in after.config["vision_blocks"]]
    assert all(width % 8 == 0 for width in widths)
    assert widths != [block["expanded"] for block in before.config["vision_blocks"]]
    (recovered,) = home.glob("store/distill-*")
    assert facts_of(recovered / "model").config == after.config


@pytest.mark.parametrize("importance", ["magnitude", "activation", "entropy", "gradient", "taylor"])
def test_the_dry_run_says_what_is_built(home, importance):
    sets = ["target.params=0.5", f"importance={importance}", "calibration=train", "num_samples=16"]
    told = prune(home, *sets)
    assert told.returncode == 0, told.stderr
    assert not list((home / "by-hand").glob("prune-*")) or importance != "magnitude"
    rows = {(row["axis"], row["field"]): row for row in json.loads(told.stdout)["decisions"]}
    done = prune(home, *sets, dry_run=False)
    assert done.returncode == 0, done.stderr
    built = max(home.glob("by-hand/prune-*"), key=lambda path: path.stat().st_mtime)
    assert facts_of(built / "model").parameters == rows["all", "parameters"]["after"]
    state = load_module(built / "model", "cpu").state_dict()
    assert state["vision.last.weight"].shape[0] == rows["vision.last", "vision_width"]["after"]
    assert json.loads((built / "manifest.json").read_text())["summary"]["cuts"] == list(
        rows.values()
    )


def test_stated_dimensions_are_what_comes_out(home):
    done = prune(home, "target.dimensions.vision_width=100", "importance=magnitude", dry_run=False)
    assert done.returncode == 0, done.stderr
    built = max(home.glob("by-hand/prune-*"), key=lambda path: path.stat().st_mtime)
    assert facts_of(built / "model").config["vision_width"] == 100


def test_a_target_in_milliseconds_is_met_on_paper(home):
    sets = ["target.latency_ms=90%", "calibration=train", "latency.repeats=5"]
    told = prune(home, *sets)
    assert told.returncode == 0, told.stderr
    rows = {row["field"]: row for row in json.loads(told.stdout)["decisions"]}
    assert rows["operators_ms"]["after"] <= 0.9 * rows["operators_ms"]["before"]


def test_in_torch_the_whole_model_is_timed_too(home):
    sets = ["target.macs=0.5", "calibration=train", "latency.repeats=5", "latency.runtime=torch"]
    told = prune(home, *sets)
    if "not faster" in told.stderr:  # so small a model on a busy machine: then that is what is told
        return
    assert told.returncode == 0, told.stderr
    rows = {row["field"]: row for row in json.loads(told.stdout)["decisions"]}
    assert rows["model_ms"]["before"] > 0
    assert rows["model_ms"]["after"] > 0


def test_the_dry_run_of_rounds_foretells_the_end_and_says_so(home):
    sets = [
        "target.macs=0.5",
        "calibration=train",
        "recovery.validation=null",
        "recovery.training.steps=5",
    ]
    once = prune(home, *sets)
    gradual = prune(home, *sets, "schedule.kind=gradual")
    assert json.loads(gradual.stdout)["decisions"] == json.loads(once.stdout)["decisions"]
    (teacher,) = home.glob("store/train-*")
    fields = [part for one in [*sets, "schedule.kind=gradual"] for part in ("--set", one)]
    shown = cli(
        "pass",
        "prune",
        teacher,
        "-p",
        home / "pipeline.yaml",
        "-o",
        home / "by-hand",
        *fields,
        "--dry-run",
    )
    assert "each of the 5 rounds scores anew" in shown.stderr


@pytest.mark.parametrize("dry_run", [True, False])
@pytest.mark.parametrize(
    ("step", "where"),
    [
        (["prune", "target.macs=0.5", "calibration=texts"], "'texts'"),
        (["prune", "target.macs=0.5", "calibration=large"], "'large'"),
        (["train", "train=texts", "validation=large"], "'large'"),
        (["distill", "student.preset=tiny", "train=train", "validation=texts"], "'texts'"),
    ],
)
def test_data_that_do_not_fit_are_told_before_anything_runs(home, step, where, dry_run):
    if dry_run and step[0] != "prune":
        return  # they have nothing to preview
    text = PIPELINE.replace(
        "passes:\n",
        "  texts: {source: text, path: texts.txt, sequence_length: 8}\n"
        "  large: {source: images, path: pictures, image_size: 24}\n"
        "passes:\n",
    )
    (home / "unfit.yaml").write_text(text)
    (home / "texts.txt").write_text("not a picture, but enough for a window\n")
    (teacher,) = home.glob("store/train-*")
    fields = [part for one in step[1:] for part in ("--set", one)]
    options = [
        "-p",
        home / "unfit.yaml",
        "-o",
        home / "by-hand",
        *fields,
        *(["--dry-run"] if dry_run else []),
    ]
    done = cli("pass", step[0], teacher, *options)
    assert done.returncode == 2, done.stderr
    assert where in done.stderr
    assert "Traceback" not in done.stderr


def test_what_a_library_throws_in_a_dry_run_is_the_error_of_the_pass(home, tmp_path, monkeypatch):
    def odd(*_):
        raise TypeError("odd")

    (teacher,) = home.glob("store/train-*")
    pipeline = single_pass(
        "prune", teacher, home / "pipeline.yaml", ["target.macs=0.5", "calibration=train"]
    )
    plan = make_plan(pipeline, Store(tmp_path / "store"), SourceContext(home))
    monkeypatch.setattr(Prune, "preview", odd)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with pytest.raises(PassError, match="failed: TypeError: odd") as caught:
        preview(plan, lambda _: None)
    (log,) = tmp_path.glob("*.traceback.txt")
    assert str(log) in str(caught.value)
    assert "raise TypeError" in log.read_text()
    assert not list((tmp_path / "store").glob("*"))


@pytest.mark.parametrize(
    ("sets", "code", "message"),
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
            1,
            "did you mean 'vision_width'",
        ),
        (
            ["target.dimensions.vision_width=800", "importance=magnitude"],
            1,
            "not between 1 and 192",
        ),
        (['axes=["heads"]', "target.macs=0.7", "importance=magnitude"], 1, "has no heads to cut"),
    ],
)
def test_a_mistake_is_told_and_nothing_is_built(home, sets, code, message):
    before = set(home.glob("by-hand/*"))
    done = prune(home, *sets, dry_run=False)
    assert done.returncode == code, done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert set(home.glob("by-hand/prune-*")) <= before


def test_what_is_added_stays_added_and_nothing_else_begins_to():
    family = ImageClassifier()
    config = family.presets["small"]
    torch.manual_seed(0)
    cut = replace_fields(
        config,
        {("vision_blocks", 1, "out"): 16, ("vision_blocks", 0, "out"): 16, ("vision_stem",): 16},
    )
    assert [
        block.is_residual(inputs)
        for block, inputs in zip(cut.vision_blocks, (16, 16, 16, 48), strict=True)
    ] == [
        False,
        True,
        False,
        True,
    ]
    with pytest.raises(ValueError, match="cannot be added"):
        replace_fields(
            config, {("vision_blocks", 1, "out"): 16, ("vision_blocks", 1, "residual"): True}
        )


def test_layers_go_and_those_that_stay_keep_their_weights(home, tmp_path):
    text = PIPELINE.replace("preset: small", "preset: small-vit").split("  - {type: prune")[0]
    (home / "vit.yaml").write_text(text)
    assert cli("run", home / "vit.yaml", "-o", tmp_path).returncode == 0
    (vit,) = tmp_path.glob("train-*")
    options = [
        "-p",
        home / "vit.yaml",
        "-o",
        tmp_path,
        "--set",
        "calibration=train",
        "--set",
        "num_samples=16",
        "--json",
    ]
    done = cli("pass", "prune", vit, "--set", "target.dimensions.vision_layers=2", *options)
    assert done.returncode == 0, done.stderr
    (cut,) = tmp_path.glob("prune-*")
    assert facts_of(cut / "model").config["vision_layers"] == 2
    before, after = (load_module(one / "model", "cpu").state_dict() for one in (vit, cut))
    kept = [
        next(
            old
            for old in range(4)
            if torch.equal(after[name], before[f"vision.layers.{old}.up.weight"])
        )
        for name in ("vision.layers.0.up.weight", "vision.layers.1.up.weight")
    ]
    assert kept[0] < kept[1]
    half = cli(
        "pass", "prune", vit, "--set", "target.params=60%", "--set", 'axes=["layers"]', *options
    )
    assert half.returncode == 0, half.stderr
