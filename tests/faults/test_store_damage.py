"""Damage in a store: what needs it fails with its name, and what does not need it goes on."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from compressor.analysis import bisect, gain
from compressor.artifacts import exchange, sessions
from compressor.artifacts.collecting import collect
from compressor.artifacts.files import atomic_file, write_atomic
from compressor.artifacts.locks import lock
from compressor.artifacts.runs import kept_run
from compressor.artifacts.sessions import open_session
from compressor.artifacts.store import Store
from compressor.commands.common import open_pipeline, plan_pipeline
from compressor.engine.run import single_pass
from compressor.engine.run.runner import kept_artifact, protected
from compressor.errors import UsageError
from tests.support.forked import Outcome
from tests.torture.stores import copy_template, leftovers, run_in

RUN = ("run", "pipeline.yaml")
LATER = (*RUN, "--set", "passes[1].rounds=4")


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """Return a home with a store of one run."""
    copy_template("built", tmp_path)
    return tmp_path


def run(home: Path, *words: str, code: int = 0, prepare: Callable[[], object] = int) -> Outcome:
    outcome = run_in(home, words, prepare)
    assert outcome.code == code, outcome.printed
    assert "Traceback" not in outcome.printed
    return outcome


def record(home: Path) -> Path:
    """Return the folder of the only run."""
    (folder,) = (path for path in (home / "artifacts/runs").iterdir() if path.is_dir())
    return folder


def change(file: Path) -> None:
    """Change a digit of a JSON file."""
    content = file.read_bytes()
    position = content.index(b'"value": ') + 9 if b'"value": ' in content else len(content) - 20
    digit = b"8" if content[position : position + 1] == b"7" else b"7"
    file.write_bytes(content[:position] + digit + content[position + 1 :])


def test_a_damaged_old_record_is_named_and_hinders_nothing(home: Path) -> None:
    old = record(home)
    change(old / "run.json")
    run(home, *LATER)
    removed = json.loads(run(home, "gc", "--json").printed)
    assert len(removed["paths"]) == 1, "the newer record of the pipeline says what is needed"
    assert "run.json is damaged" in run(home, "history", code=4).printed
    assert "toy-" in run(home, "verify", code=4).printed
    run(home, "gate", "artifacts", "--against", "artifacts")
    assert "run.json" in run(home, "gate", "artifacts", "--against", str(old), code=4).printed


def test_gc_removes_no_artifact_while_the_last_record_is_damaged(home: Path) -> None:
    run(home, *LATER)
    last = max((home / "artifacts/runs").iterdir(), key=lambda path: path.stat().st_mtime_ns)
    (last / "run.json").unlink()
    printed = run(home, "gc", code=4).printed
    assert last.name in printed
    assert "removed 0 paths" in printed
    run(home, *LATER)
    run(home, "gc")
    assert run(home, "verify").printed.count("✓") == 5, "three artifacts, two records"


def test_a_run_that_is_recorded_again_sets_its_damaged_record_aside(home: Path) -> None:
    change(record(home) / "ladder.json")
    assert "ladder.json" in run(home, "history", code=4).printed
    run(home, *RUN)
    run(home, "verify")
    assert (home / "artifacts/.damaged").is_dir()


@pytest.mark.parametrize("file", ["manifest.json", "model/model.onnx", "reports/latency.json"])
def test_verify_checks_the_rest_of_a_store_with_a_missing_file(home: Path, file: str) -> None:
    first = min((home / "artifacts").glob("toy-*"))
    (first / file).unlink()
    printed = run(home, "verify", code=4).printed
    assert f"✗ {first.name}" in printed
    assert file in printed
    assert printed.count("✓") == 3
    assert file in run(home, "verify", str(first), code=4).printed
    assert file in run(home, "archive", str(first), "x.tar.zst", code=4).printed
    run(home, *RUN)
    run(home, "verify", *map(str, (home / "artifacts").glob("*-*")))


def test_a_run_keeps_its_figures_when_its_artifacts_are_measured_again(home: Path) -> None:
    old = record(home)
    run(home, *RUN, "--set", "evaluate.latency.repeats=9")
    gates = json.loads(run(home, "gate", "artifacts", "--against", str(old), "--json").printed)
    assert {gate["reference"] for gate in gates if gate["unit"] == "ms"} == {2.0}
    assert "measured or built again" in run(home, "report", str(old), code=2).printed


def test_the_report_of_an_old_run_does_not_make_it_the_last_one(home: Path) -> None:
    old = record(home)
    (old / "notes.txt").write_text("mine")
    run(home, *LATER)
    run(home, "report", str(old))
    assert (old / "notes.txt").read_text() == "mine"
    assert len(json.loads(run(home, "gc", "--json").printed)["paths"]) == 1


def test_records_of_earlier_versions_are_read_and_said_to_be_unchecked(home: Path) -> None:
    file = record(home) / "run.json"
    tree = json.loads(file.read_text())
    del tree["digest"], tree["files"]
    file.write_text(json.dumps(tree))
    printed = run(home, "gate", "artifacts", "--against", "artifacts").printed
    assert "written before records had digests" in printed
    assert "written before records had digests" in run(home, "history").printed
    run(home, "verify")
    run(home, "report")
    assert "digest" in json.loads(file.read_text())
    assert not json.loads(file.read_text())["digest"], "what was not checked is not sealed"


def _folder(path: Path) -> None:
    path.mkdir()


def _file(path: Path) -> None:
    path.write_bytes(b"\x00garbage")


def _link(path: Path) -> None:
    path.symlink_to("nowhere")


def _pipe(path: Path) -> None:
    os.mkfifo(path)


def _text(text: str) -> Callable[[Path], object]:
    return lambda path: path.write_text(text)


JSON = [
    "",
    "[]",
    "{}",
    "[" * 100_000,
    '{"files": [], "summary": {}, "seconds": "1", "peak_rss_bytes": null}',
    '{"files": {"model/model.onnx": {"sha256": 1, "bytes": "x"}}, "summary": {}, "seconds": 0.0,'
    ' "peak_rss_bytes": 0}',
]


@pytest.mark.parametrize(
    "places",
    [
        [".staging/ID"],
        [".staging/ID/out/model"],
        [
            ".locks/ID",
            *(f".staging/ID/{name}" for name in ("out", "work", "built.json", "log.txt")),
        ],
    ],
    ids=["folder", "model", "others"],
)
@pytest.mark.parametrize("what", [_folder, _file, _link, _pipe])
def test_damage_in_staging_and_locks_costs_a_rebuild(
    tmp_path: Path, places: list[str], what: Callable[[Path], None]
) -> None:
    copy_template("empty", tmp_path)
    first = _planned(tmp_path)
    for place in places:
        path = tmp_path / "artifacts" / place.replace("ID", first)
        path.parent.mkdir(parents=True, exist_ok=True)
        what(path)
    run(tmp_path, *RUN, "--until", "first")
    run(tmp_path, "verify")
    assert not leftovers(tmp_path)


@pytest.mark.parametrize("content", JSON)
def test_damaged_json_in_staging_costs_a_rebuild(tmp_path: Path, content: str) -> None:
    copy_template("empty", tmp_path)
    staging = tmp_path / "artifacts/.staging" / _planned(tmp_path)
    staging.mkdir(parents=True)
    (staging / "built.json").write_text(content)
    run(tmp_path, *RUN, "--until", "first")
    run(tmp_path, "verify")


def _planned(home: Path) -> str:
    """Return the short id of the first toy step."""
    steps = json.loads(run(home, "plan", "pipeline.yaml", "--json").printed)["steps"]
    return str(steps[1]["id"])[:12]


def test_a_directory_is_replaced_where_names_cannot_be_exchanged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exchange, "exchange", lambda *_: False)
    for name in ("runs/final", "new"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "content").write_text(name)
    final = tmp_path / "runs/final"
    with open_session(tmp_path) as session:
        aside = session.aside(final)
        assert exchange.replace_directory(tmp_path / "new", final, aside) == aside
        assert (final / "content").read_text() == "new"
        assert (aside / "content").read_text() == "runs/final"
        shutil.rmtree(final)  # as if the process had died between the two renames
        dead = tmp_path / ".staging" / f"{'0' * 16}-0-replaced"
        session.aside(final).parent.parent.parent.mkdir(exist_ok=True)
        (tmp_path / ".staging" / aside.relative_to(tmp_path / ".staging").parts[0]).rename(dead)
    sessions.sweep(tmp_path)
    assert (final / "content").read_text() == "runs/final", "the old one is back"
    assert not list((tmp_path / ".staging").iterdir())


def test_gc_of_another_store_keeps_the_model_of_a_run(home: Path) -> None:
    first = min((home / "artifacts").glob("toy-*"))
    shutil.rmtree(home / "artifacts/runs")
    home.joinpath("next.yaml").write_text(
        f"version: 1\nname: next\nmodel: {{path: artifacts/{first.name}, measure: false}}\n"
        "passes: [{type: toy, name: only}]\n"
    )
    plan = plan_pipeline(open_pipeline(home / "next.yaml", None), home / "new", None, "cpu", False)
    with protected(plan):
        removed = collect(Store(home / "artifacts"), dry_run=True).removed
        assert not removed, "its ancestors are kept as well"
    assert first in collect(Store(home / "artifacts"), dry_run=True).removed


def test_gc_keeps_what_other_commands_read(home: Path) -> None:
    first = min((home / "artifacts").glob("toy-*"))
    with kept_run(home / "artifacts") as (folder, _):
        shutil.rmtree(folder)
        assert not collect(Store(home / "artifacts"), dry_run=True).removed
    assert first in collect(Store(home / "artifacts"), dry_run=True).removed
    with kept_artifact(first):
        assert first not in collect(Store(home / "artifacts"), dry_run=True).removed
    copy = shutil.copytree(first, home / "copies" / first.name)
    with kept_artifact(copy) as artifact:
        assert artifact.path == copy
    assert not (home / "copies" / ".locks").exists(), "copies have no sessions"


@pytest.mark.parametrize("command", ["eval", "bench", "gain", "bisect"])
def test_commands_that_measure_keep_their_artifacts(home: Path, command: str) -> None:
    store = home / "artifacts"
    target = min(store.glob("toy-*")) if command in {"eval", "bench"} else store

    def prepare() -> None:
        def measured(*_: object, **__: object) -> None:
            shutil.rmtree(store / "runs")
            kept = not collect(Store(store), dry_run=True).removed
            raise UsageError("kept" if kept else "lost")

        single_pass.measure = measured
        gain.load_batch = measured
        bisect.MetricEvaluator.create = measured

    data = ("-p", "pipeline.yaml", *(("--metric", "top1") if command == "bisect" else ()))
    outcome = run_in(home, (command, str(target), *data), prepare)
    assert "error: kept" in outcome.printed, outcome.printed


def test_leftovers_of_dead_writers_are_removed_and_others_kept(tmp_path: Path) -> None:
    file = tmp_path / ("n" * 250)
    dead = tmp_path / f".{file.name[:50]}.{'0' * 16}.tmp"
    older = tmp_path / f".{file.name[:50]}.4711.tmp"
    for path in (dead, older):
        path.write_bytes(b"torn")
    with atomic_file(file) as writing:
        writing.write(b"slow")
        write_atomic(file, b"fast")
        assert file.read_bytes() == b"fast"
        assert not dead.exists()
        assert not older.exists()
    assert file.read_bytes() == b"slow"
    assert list(tmp_path.iterdir()) == [file]


def test_sessions_of_dead_processes_are_swept_with_their_folders(tmp_path: Path) -> None:
    if (child := os.fork()) == 0:
        with open_session(tmp_path, ["a" * 64]) as session:
            session.temporary("record").mkdir()
            os._exit(0)
    os.waitpid(child, 0)
    assert len(list((tmp_path / ".staging").iterdir())) == 1
    with open_session(tmp_path, ["b" * 64]):
        assert list(sessions.live_sessions(tmp_path).values()) == [frozenset({"b" * 64})]
        assert not list((tmp_path / ".staging").iterdir())
    assert not sessions.live_sessions(tmp_path)


@pytest.mark.skipif(os.geteuid() != 0, reason="changing users needs root")
@pytest.mark.usefixtures("cold_workers")  # with the rights of their user
def test_two_users_share_a_setgid_store(tmp_path: Path) -> None:
    group = 54321
    copy_template("empty", tmp_path)
    for folder in (tmp_path, *tmp_path.parents[:3]):
        folder.chmod(0o755)
    store = tmp_path / "artifacts"
    store.mkdir()
    os.chown(store, 54322, group)
    store.chmod(0o2775)

    def become(user: int) -> Callable[[], None]:
        def prepare() -> None:
            os.setgroups([group])
            os.setgid(user)
            os.setuid(user)
            os.umask(0o077)

        return prepare

    run(tmp_path, *RUN, prepare=become(54322))
    for words in (RUN, (*RUN, "--force"), (*RUN, "--set", "evaluate.latency.repeats=3"), ("gc",)):
        run(tmp_path, *words, prepare=become(54323))
    run(tmp_path, "report", prepare=become(54322))
    first = min(store.glob("toy-*"))
    (first / "manifest.json").chmod(0)
    printed = run(tmp_path, "show", "FIRST", code=1, prepare=become(54323)).printed
    assert "no permission to read" in printed or "cannot be read: no permission" in printed
    assert "no permission" in run(tmp_path, *RUN, code=1, prepare=become(54323)).printed
    assert first.is_dir(), "what another user does not let read is not damaged"


def test_a_lock_is_waited_for(tmp_path: Path) -> None:
    waited = []
    with lock(tmp_path / "a/lock"):
        if (child := os.fork()) == 0:
            code = 1
            try:
                with lock(tmp_path / "a/lock", lambda: os._exit(7)):
                    code = 2
            finally:
                os._exit(code)
        waited.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    assert waited == [7]
