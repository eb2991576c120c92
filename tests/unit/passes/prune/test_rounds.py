"""Cuts in rounds with recovery: the target is met, and a killed run ends with the same bytes."""

import json
import shutil
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from compressor.engine.contract import PassContext, PlanContext
from compressor.errors import RequirementError
from compressor.models.capabilities.cuttable_axes import replace_fields
from compressor.models.facts import ModelFacts, facts_of
from passes.common.training import fit
from passes.prune.config import PruneConfig
from passes.prune.rounds import CHECKPOINT
from passes.prune.step import Prune
from tests.support.tiny_models import CLASSIFIER
from tests.support.training import Blobs, Killed


@pytest.fixture(scope="module")
def parent(tmp_path_factory):
    torch.manual_seed(0)
    config = replace_fields(CLASSIFIER.presets["small"], {("num_classes",): 2, ("image_size",): 16})
    folder = tmp_path_factory.mktemp("parent")
    CLASSIFIER.save(CLASSIFIER.build(config), config, folder / "model")
    return SimpleNamespace(model=folder / "model")


def fields_of(target=None, **fields):
    recovery = {
        "validation": None,
        "training": {"steps": 12, "batch_size": 16, "checkpoint_every": 1, "ema_decay": 0.9},
    }
    defaults = {
        "target": target or {"macs": 0.5},
        "calibration": "train",
        "num_samples": 32,
        "batch_size": 16,
        "recovery": recovery,
        "schedule": {"kind": "gradual", "rounds": 3},
    }
    return defaults | fields


def prune(parent, folder, fields, kill=None):
    """Run the pass and return its summary, its notes and its progress calls.

    Args:
        parent: the artifact.
        folder: holds the folders ``work`` and ``out``.
        fields: the config.
        kill: (activity, done, n): raise ``Killed`` at the n-th call with this progress.
    """
    work, out, notes, calls = folder / "work", folder / "out", [], []
    shutil.rmtree(out, ignore_errors=True)
    work.mkdir(parents=True, exist_ok=True)
    out.mkdir(parents=True)

    def progress(activity, done, total, metrics):
        call = (activity, done, total)
        calls.append(call)
        if kill is not None and call[:2] == kill[:2] and calls.count(call) == kill[2]:
            raise Killed

    context = PassContext(
        artifacts={},
        data=lambda _: Blobs(),
        work=work,
        seed=0,
        threads=1,
        device="cpu",
        artifact_id="ab" * 32,
        progress=progress,
        note=notes.append,
        cache=folder / "cache",
    )
    config = PruneConfig.model_validate_json(json.dumps(fields))
    pass_ = Prune()
    pass_.requires(config, parent, context)
    output = pass_.run(config, parent, out, context)
    pass_.ensures(config, parent, out, context)
    return output.summary, notes, calls


def weights(folder):
    return (folder / "out" / "model.safetensors").read_bytes()


@pytest.mark.parametrize("rule", [{"rule": "cubic"}, {"rule": "threshold", "threshold": 0.3}])
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
def test_the_last_round_meets_every_target(parent, tmp_path, target, rule, monkeypatch):
    monkeypatch.setattr(
        "passes.prune.operator_latency.measure_operator",
        lambda operator, _: float(np.prod(operator.weight)),
    )
    latency = {"latency": {"repeats": 3}} if "latency_ms" in target else {}
    schedule = {"kind": "gradual", "rounds": 3, **rule}
    summary, _, _ = prune(parent, tmp_path, fields_of(target, schedule=schedule, **latency))
    before, after = facts_of(parent.model), facts_of(tmp_path / "out")
    if "macs" in target:
        assert after.macs <= 0.5 * before.macs
    elif "dimensions" in target:
        assert after.config["vision_width"] == 64
        assert after.config["vision_stem"] == before.config["vision_stem"]
    elif "latency_ms" in target:
        rows = [
            next(row for row in round_["cuts"] if row["field"] == "operators_ms")
            for round_ in summary["rounds"]
        ]
        assert rows[-1]["after"] <= 0.8 * rows[0]["before"]
        assert summary["rounds"][0]["latency"]["table_sha256"]
    else:
        assert after.parameters <= 0.6 * before.parameters
    assert [round_["round"] for round_ in summary["rounds"]] == [1, 2, 3]
    assert [entry["step"] for entry in summary["history"]] == [4, 8, 12]
    assert summary["steps"] == 12


def test_cubic_rounds_cut_their_part_of_the_way(parent, tmp_path):
    summary, _, calls = prune(parent, tmp_path, fields_of(multiple=1))
    rows = [
        next(row for row in round_["cuts"] if row["field"] == "macs")
        for round_ in summary["rounds"]
    ]
    limits = [0.5 + 0.5 * (2 / 3) ** 3, 0.5 + 0.5 / 27, 0.5]
    for row, limit in zip(rows, limits, strict=True):
        assert 0.9 * limit < row["after"] / rows[0]["before"] <= limit
    assert [row["before"] for row in rows[1:]] == [row["after"] for row in rows[:-1]]
    assert ("round 3 of 3, step", 12, 12) in calls


@pytest.mark.parametrize(
    "kill",
    [
        ("round 1 of 3, step", 3, 1),  # Within a training.
        ("round 1 of 3, step", 4, 1),  # After its last step, before the end is recorded.
        ("score", 16, 2),  # In the second round's scoring, between two rounds.
        ("round 2 of 3, step", 5, 1),
        ("round 3 of 3, step", 12, 1),
    ],
)
def test_a_killed_run_resumes_to_the_same_bytes(parent, tmp_path, kill):
    uninterrupted, _, _ = prune(parent, tmp_path / "whole", fields_of())
    with pytest.raises(Killed):
        prune(parent, tmp_path / "killed", fields_of(), kill)
    torch.manual_seed(99)
    resumed, notes, calls = prune(parent, tmp_path / "killed", fields_of())
    assert weights(tmp_path / "killed") == weights(tmp_path / "whole")
    assert resumed == uninterrupted
    assert not notes
    assert ("round 1 of 3, step", 1, 12) not in calls


def test_a_damaged_checkpoint_is_noted_and_all_rounds_are_repeated(parent, tmp_path):
    prune(parent, tmp_path / "whole", fields_of())
    with pytest.raises(Killed):
        prune(parent, tmp_path / "killed", fields_of(), ("round 2 of 3, step", 6, 1))
    checkpoint = tmp_path / "killed" / "work" / CHECKPOINT
    checkpoint.write_bytes(checkpoint.read_bytes()[:-7])
    _, notes, _ = prune(parent, tmp_path / "killed", fields_of())
    assert weights(tmp_path / "killed") == weights(tmp_path / "whole")
    assert ["damaged" in note for note in notes] == [True]


@pytest.mark.parametrize(
    ("soft_weight", "terms"),
    [(0.0, {"label"}), (0.5, {"label", "soft_label"}), (1.0, {"soft_label"})],
)
def test_recovery_after_one_cut_trains_and_is_recorded(parent, tmp_path, soft_weight, terms):
    training = {"steps": 30, "batch_size": 16, "learning_rate": 0.01}
    recovery = {"validation": "train", "training": training, "soft_weight": soft_weight}
    fields = fields_of(recovery=recovery, schedule={"kind": "once"})
    summary, _, _ = prune(parent, tmp_path, fields)
    (entry,) = summary["history"]
    assert {"label", "soft_label"} & set(entry) == terms
    assert "rounds" not in summary
    assert summary["cuts"]
    if soft_weight == 0:
        assert entry["accuracy"] > 0.9


def test_all_rounds_together_use_the_batches_of_one_training(parent, tmp_path, monkeypatch):
    batches = {}

    class Watched(Blobs):
        def batch(self, indices, epoch=0):
            batches.setdefault(schedule, []).append((epoch, *indices.tolist()))
            return super().batch(indices, epoch)

    def fit_watched(model, task, *arguments):
        return fit(model, replace(task, dataset=Watched()), *arguments)

    monkeypatch.setattr("passes.prune.recovery.fit", fit_watched)
    for schedule in ("once", "gradual"):
        prune(parent, tmp_path / schedule, fields_of(schedule={"kind": schedule}))
    assert batches["once"] == batches["gradual"]
    assert {epoch for epoch, *_ in batches["once"]} == {0, 1, 2}


def test_a_target_out_of_reach_is_reported_before_anything_is_trained(parent, tmp_path):
    with pytest.raises(RequirementError, match="no further cut saves anything"):
        prune(parent, tmp_path, fields_of({"macs": 0.01}))
    assert not list((tmp_path / "work").iterdir())


def test_the_estimate_counts_recovery_and_rounds():
    facts = ModelFacts(parameters=10**6, macs=10**8, size_bytes=4 * 10**6)
    seconds = {}
    for name, fields in {
        "cut": {"recovery": None, "schedule": {"kind": "once"}},
        "once": {"schedule": {"kind": "once"}},
        "gradual": {},
    }.items():
        config = PruneConfig.model_validate_json(json.dumps(fields_of(**fields)))
        estimate = Prune().estimate(config, facts, PlanContext({}))
        assert estimate.model.macs == 5 * 10**7
        seconds[name] = estimate.seconds
    assert 0 < seconds["cut"] < seconds["once"] < seconds["gradual"] < 4 * seconds["once"]
