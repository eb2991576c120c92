"""Tests of the runs of a store, and of one metric over them."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from benchmarks.history import fill
from compressor.analysis.history import metric_history, read_history
from compressor.errors import UsageError
from tests.support.cli import cli


def test_runs_are_listed_oldest_first_with_their_ladders(toy_pipeline: Path) -> None:
    store = toy_pipeline.parent / "store"
    with pytest.raises(UsageError, match="holds no run"):
        read_history(store)
    for rounds in (3, 4):
        assert (
            cli("run", toy_pipeline, "-o", store, "--set", f"passes[1].rounds={rounds}").returncode
            == 0
        )
    old, new = read_history(store).runs
    assert old.when <= new.when
    assert "rounds=4" in new.command
    assert [step.step for step in new.steps] == ["source", "first", "second"]
    assert old.steps[2].id != new.steps[2].id
    assert len(metric_history([old, new], "size_bytes")) == 6
    with pytest.raises(UsageError, match="no run has 'top1'"):
        metric_history([old, new], "top1")
    with pytest.raises(UsageError, match="no run of 'other'"):
        read_history(store, "other")
    assert len(json.loads(cli("history", "-o", store, "--json").stdout)) == 2
    listing = cli("history", "-o", store, "--metric", "size_bytes")
    assert listing.returncode == 0
    assert listing.stdout.count("second") == 2
    cli("gc", "-o", store)
    assert len(read_history(store).runs) == 2, "a ladder outlives its artifacts"


def test_metrics_of_slices_are_read_when_they_are_needed(tmp_path: Path) -> None:
    store = tmp_path / "store"
    fill(store, 2)
    first, _ = read_history(store, slices=False).runs
    assert not any("[" in name for step in first.steps for name in step.recorded)
    whole, _ = read_history(store).runs
    name = "top1[input=text]"
    assert len(metric_history([whole], name)) == 4
    listed = cli("history", "-o", store, "--metric", name)
    assert listed.returncode == 0 and listed.stdout.count("student") == 2
    [step] = [step for step in whole.to_json()["steps"] if step["step"] == "student"]
    ladder = json.loads((store / "runs" / whole.run / "ladder.json").read_text())
    [row] = [row for row in ladder["rows"] if row["step"] == "student"]
    assert step["metrics"] == row["metrics"]
    slices = store / "runs" / ".slices.json"
    slices.write_bytes(slices.read_bytes().replace(b"0.8", b"0.9"))
    assert read_history(store).runs[0] == whole, "a damaged index is written again"


def test_the_index_is_never_believed_over_the_records(toy_pipeline: Path) -> None:
    store = toy_pipeline.parent / "store"
    for rounds in (3, 4):
        cli("run", toy_pipeline, "-o", store, "--set", f"passes[1].rounds={rounds}")
    runs = read_history(store).runs
    index = store / "runs" / ".index.json"
    indexed = index.read_bytes()
    assert read_history(store).runs == runs
    for changed in (b"", b"{}", indexed.replace(b"131", b"999"), indexed[:64] + b"[]"):
        index.write_bytes(changed)
        assert read_history(store).runs == runs
        assert index.read_bytes() == indexed, "it is written again"
    ladder = store / "runs" / runs[0].run / "ladder.json"
    content, times = ladder.read_bytes(), ladder.stat()
    ladder.write_bytes(content.replace(b"131", b"999"))
    os.utime(ladder, ns=(times.st_atime_ns, times.st_mtime_ns))
    history = read_history(store)
    assert history.runs == runs[1:]
    assert "ladder.json is damaged" in history.damaged[0]
    failed = cli("history", "-o", store)
    assert failed.returncode == 4
    assert runs[1].run in failed.stdout
    assert cli("history", "-o", store, "--name", "other").returncode == 2
    ladder.write_bytes(content)
    assert read_history(store).runs == runs
