"""Tests of the runs of a store, and of one metric over them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from compressor.analysis.history import list_runs, metric_history
from compressor.errors import UsageError
from tests.support.cli import cli


def test_runs_are_listed_oldest_first_with_their_ladders(toy_pipeline: Path) -> None:
    store = toy_pipeline.parent / "store"
    with pytest.raises(UsageError, match="holds no run"):
        list_runs(store)
    for rounds in (3, 4):
        assert (
            cli("run", toy_pipeline, "-o", store, "--set", f"passes[1].rounds={rounds}").returncode
            == 0
        )
    old, new = list_runs(store)
    assert old.when <= new.when
    assert "rounds=4" in new.command
    assert [step.step for step in new.steps] == ["source", "first", "second"]
    assert old.steps[2].id != new.steps[2].id
    assert len(metric_history([old, new], "size_bytes")) == 6
    with pytest.raises(UsageError, match="no run has 'top1'"):
        metric_history([old, new], "top1")
    with pytest.raises(UsageError, match="no run of 'other'"):
        list_runs(store, "other")
    assert len(json.loads(cli("history", "-o", store, "--json").stdout)) == 2
    listing = cli("history", "-o", store, "--metric", "size_bytes")
    assert listing.returncode == 0
    assert listing.stdout.count("second") == 2
    cli("gc", "-o", store)
    assert len(list_runs(store)) == 2, "a ladder outlives its artifacts"
