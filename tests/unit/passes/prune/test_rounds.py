"""Cuts in rounds with recovery between: the target is met, and a killed run ends in the same bytes."""

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from compressor.engine.contract import PassContext, PlanContext
from compressor.errors import RequirementError
from compressor.models.capabilities.cuttable_axes import CuttableAxes, replace_fields
from compressor.models.facts import ModelFacts, facts_of
from passes.common.training import fit
from passes.prune.allocation import widths_of
from passes.prune.pruning import CHECKPOINT
from passes.prune.schedule import Stage, only_below
from passes.prune.step import Prune, PruneConfig
from tests.support.pruning import widths_from_scores
from tests.support.tiny_models import CLASSIFIER
from tests.support.training import Blobs, Killed


@pytest.fixture(scope="module")
def parent(tmp_path_factory):
    torch.manual_seed(0)
    config = replace_fields(CLASSIFIER.presets["small"], {("num_classes",): 2, ("image_size",): 16})
    folder = tmp_path_factory.mktemp("parent")
    CLASSIFIER.save(CLASSIFIER.build(config), config, folder / "model")
    return SimpleNamespace(model=folder / "model")


def pruned(parent, folder, fields, kill=None):
    """Run the pass; ``kill`` is (what, done) of the progress at which it dies. Returns its summary and its notes."""
    work, out, notes, calls = folder / "work", folder / "out", [], []
    shutil.rmtree(out, ignore_errors=True)
    for one in (work, out):
        one.mkdir(parents=True, exist_ok=True)

    def progress(what, done, total, figures):
        calls.append((what, done, total))
        if (
            kill is not None
            and calls.count((what, done, total)) == kill[2]
            and (what, done) == kill[:2]
        ):
            raise Killed

    context = PassContext(
        {},
        lambda _: Blobs(),
        work,
        0,
        1,
        "cpu",
        "ab" * 32,
        progress,
        notes.append,
        folder / "cache",
    )
    config = PruneConfig.model_validate_json(
        fields if isinstance(fields, str) else json.dumps(fields)
    )
    pass_ = Prune()
    pass_.requires(config, parent, context)
    output = pass_.run(config, parent, out, context)
    pass_.ensures(config, parent, out, context)
    return output.summary, notes, calls


def config_of(target=None, **more):
    recovery = {
        "validation": None,
        "training": {"steps": 12, "batch_size": 16, "checkpoint_every": 1, "average": 0.9},
    }
    fields = {
        "target": target or {"macs": 0.5},
        "calibration": "train",
        "num_samples": 32,
        "batch_size": 16,
    }
    return fields | {"recovery": recovery, "schedule": {"kind": "gradual", "rounds": 3}} | more


def weights(folder):
    return (folder / "out" / "model.safetensors").read_bytes()


@pytest.mark.parametrize("rule", ["cubic", "threshold"])
@pytest.mark.parametrize(
    "target",
    [
        {"macs": 0.5},
        {"params": "60%"},
        {"size_mb": "60%"},
        {"latency_ms": "80%"},
        {"dimensions": {"vision_width": 64}},
    ],
)
def test_every_target_is_met_by_the_last_round(parent, tmp_path, target, rule, monkeypatch):
    monkeypatch.setattr(
        "passes.prune.latency.measured", lambda operator, *_: float(np.prod(operator.weight))
    )
    latency = {"latency": {"repeats": 3}} if "latency_ms" in target else {}
    schedule = {"kind": "gradual", "rounds": 3, "rule": rule, "threshold": 0.3}
    summary, _, _ = pruned(parent, tmp_path, config_of(target, schedule=schedule, **latency))
    before, after = facts_of(parent.model), facts_of(tmp_path / "out")
    if "macs" in target:
        assert after.macs <= 0.5 * before.macs
    elif "dimensions" in target:
        assert after.config["vision_width"] == 64
        assert after.config["vision_stem"] == before.config["vision_stem"]
    elif "latency_ms" in target:
        rows = [
            next(row for row in one["cuts"] if row["field"] == "operators_ms")
            for one in summary["rounds"]
        ]
        assert rows[-1]["after"] <= 0.8 * rows[0]["before"]
        assert summary["rounds"][0]["latency"]["table_sha256"]
    else:
        assert after.parameters <= 0.6 * before.parameters
    assert [one["round"] for one in summary["rounds"]] == [1, 2, 3]
    assert [entry["step"] for entry in summary["history"]] == [4, 8, 12]
    assert summary["steps"] == 12


def test_cubic_rounds_take_their_part_of_the_way(parent, tmp_path):
    summary, _, calls = pruned(parent, tmp_path, config_of(multiple=1))
    sizes = [
        next(row for row in one["cuts"] if row["field"] == "macs") for one in summary["rounds"]
    ]
    whole = sizes[0]["before"]
    for row, allowed in zip(sizes, [0.5 + 0.5 * (2 / 3) ** 3, 0.5 + 0.5 / 27, 0.5], strict=True):
        assert 0.9 * allowed < row["after"] / whole <= allowed
    assert [one["before"] for one in sizes[1:]] == [one["after"] for one in sizes[:-1]]
    assert ("round 3 of 3, step", 12, 12) in calls


@pytest.mark.parametrize(
    "moment",
    [
        ("round 1 of 3, step", 3, 1),  # within a training
        ("round 1 of 3, step", 4, 1),  # at its end, before it is known to be over
        ("score", 16, 2),  # while the second round scores: between two rounds
        ("round 2 of 3, step", 5, 1),
        ("round 3 of 3, step", 12, 1),
    ],
)
def test_a_killed_run_ends_in_the_same_bytes(parent, tmp_path, moment):
    whole, _, _ = pruned(parent, tmp_path / "whole", config_of())
    with pytest.raises(Killed):
        pruned(parent, tmp_path / "killed", config_of(), moment)
    torch.manual_seed(99)
    resumed, notes, calls = pruned(parent, tmp_path / "killed", config_of())
    assert weights(tmp_path / "killed") == weights(tmp_path / "whole")
    assert resumed == whole
    assert not notes
    assert ("round 1 of 3, step", 1, 12) not in calls


def test_what_was_done_before_a_damage_is_done_again(parent, tmp_path):
    pruned(parent, tmp_path / "whole", config_of())
    with pytest.raises(Killed):
        pruned(parent, tmp_path / "killed", config_of(), ("round 2 of 3, step", 6, 1))
    path = tmp_path / "killed" / "work" / CHECKPOINT
    path.write_bytes(path.read_bytes()[:-7])
    _, notes, _ = pruned(parent, tmp_path / "killed", config_of())
    assert weights(tmp_path / "killed") == weights(tmp_path / "whole")
    assert ["damaged" in note for note in notes] == [True]


@pytest.mark.parametrize("soft_weight", [0.0, 0.5, 1.0])
def test_recovery_after_one_cut_learns_and_tells(parent, tmp_path, soft_weight):
    training = {"steps": 30, "batch_size": 16, "learning_rate": 0.01}
    recovery = {"validation": "train", "training": training, "soft_weight": soft_weight}
    summary, _, _ = pruned(
        parent, tmp_path, config_of(recovery=recovery, schedule={"kind": "once"})
    )
    (entry,) = summary["history"]
    assert {"label", "soft_label"} & set(entry) == {0.0: {"label"}, 1.0: {"soft_label"}}.get(
        soft_weight, {"label", "soft_label"}
    )
    assert "rounds" not in summary
    assert summary["cuts"]
    if soft_weight == 0:
        assert entry["accuracy"] > 0.9


def test_all_rounds_see_the_batches_of_one_training(parent, tmp_path, monkeypatch):
    seen = {}

    class Watched(Blobs):
        def batch(self, indices, epoch=0):
            seen.setdefault(name, []).append((epoch, *indices.tolist()))
            return super().batch(indices, epoch)

    def watched(model, dataset, *rest, **more):
        return fit(model, Watched(), *rest, **more)

    monkeypatch.setattr("passes.prune.recovery.fit", watched)
    for name in ("once", "gradual"):
        pruned(parent, tmp_path / name, config_of(schedule={"kind": name}))
    assert seen["once"] == seen["gradual"]
    assert {epoch for epoch, *_ in seen["once"]} == {0, 1, 2}


def test_a_target_out_of_reach_is_told_before_anything_is_trained(parent, tmp_path):
    with pytest.raises(RequirementError, match="no further cut saves anything"):
        pruned(parent, tmp_path, config_of({"macs": 0.01}))
    assert not list((tmp_path / "work").iterdir())


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"recovery": None}, "say how in `recovery`"),
        ({"recovery": {"training": {"steps": 2}}}, "3 rounds need as many steps"),
        ({"recovery": {"training": {"patience": 2}}}, "leave it out with a gradual"),
        ({"schedule": {"rounds": 4}}, "kind"),
    ],
)
def test_a_schedule_that_cannot_be_is_refused(more, message):
    with pytest.raises(ValidationError, match=message):
        PruneConfig.model_validate_json(json.dumps(config_of(**more)))


def test_the_estimate_counts_recovery_and_rounds():
    facts = ModelFacts(parameters=10**6, macs=10**8, size_bytes=4 * 10**6)
    seconds = {}
    for name, more in {
        "cut": {"recovery": None, "schedule": {"kind": "once"}},
        "once": {"schedule": {"kind": "once"}},
        "gradual": {},
    }.items():
        config = PruneConfig.model_validate_json(json.dumps(config_of(**more)))
        estimate = Prune().estimate(config, facts, PlanContext({}))
        assert estimate.model.macs == 5 * 10**7
        seconds[name] = estimate.seconds
    assert 0 < seconds["cut"] < seconds["once"] < seconds["gradual"] < 4 * seconds["once"]


def test_the_way_of_the_rounds():
    stages = [Stage(number, 4) for number in range(1, 5)]
    assert [stage.left for stage in stages] == [27 / 64, 8 / 64, 1 / 64, 0]
    assert [stage.limit(100, 36) for stage in stages] == [63, 44, 37, 36]
    assert [stage.size(8, 4) for stage in stages] == [6, 5, 5, 4]
    assert [stage.steps(10) for stage in stages] == [
        range(2),
        range(2, 5),
        range(5, 7),
        range(7, 10),
    ]
    assert Stage().first
    assert Stage().last


def test_only_units_below_the_threshold_may_go():
    scores = {"w": np.array([1.0, 0.05, 0.5, 0.09]), "v": np.array([1.0, 1.0, 1.0, 1.0])}
    found = {
        width.label: width.least for width in only_below(widths_from_scores(**scores), scores, 0.1)
    }
    assert found == {"w": 2, "v": 4}


def test_the_least_is_a_part_of_what_the_parent_had():
    (axis,) = [
        axis
        for axis in CLASSIFIER.capability(CuttableAxes, CLASSIFIER.presets["small"]).axes
        if axis.label == "vision_width"
    ]
    (found,) = widths_of(
        [axis],
        {axis.name: np.ones(axis.units)},
        multiple=8,
        min_keep=0.25,
        whole={"vision_width": 2 * axis.units},
    )
    assert found.least == axis.units // 2
