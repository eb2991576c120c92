from __future__ import annotations

import multiprocessing
import time
from pathlib import Path

import pytest

from compressor.artifacts.artifact import entries_of, open_artifact, verify
from compressor.artifacts.collecting import collect
from compressor.artifacts.manifest import Environment, Manifest, PassRecord
from compressor.artifacts.runs import RunRecord, RunStep, save_run
from compressor.artifacts.store import Store
from compressor.errors import DamagedArtifactError, StorageError, UsageError

ENVIRONMENT = Environment(
    platform="p", cpu="c", cores=2, memory_bytes=1, python="3", threads=1, device="cpu"
)


def publish(
    store: Store, artifact_id: str = "a" * 64, parents: dict[str, str] | None = None
) -> Path:
    staged = store.staging(artifact_id) / "out"
    (staged / "model").mkdir(parents=True)
    (staged / "model" / "weights").write_bytes(b"\x00" * 1000 + artifact_id.encode())
    (staged / "reports").mkdir()
    (staged / "reports" / "accuracy.json").write_text("{}")
    manifest = Manifest(
        id=artifact_id,
        step="s",
        kind="torch",
        parents=parents or {},
        pass_=PassRecord(name="p", version=1, config={}),
        seed=0,
        tools={},
        data={},
        files=entries_of(staged, "model"),
        reports=entries_of(staged, "reports"),
        measured="",
        metrics=(),
        summary={},
        environment=ENVIRONMENT,
        created="",
        seconds=0,
        peak_rss_bytes=0,
    )
    return store.publish(staged, manifest).path


def test_a_published_artifact_is_complete(tmp_path: Path) -> None:
    store = Store(tmp_path)
    path = publish(store)
    assert path.name == "p-" + "a" * 12
    artifact = store.find("p", "a" * 64)
    assert artifact is not None
    verify(artifact)


@pytest.mark.parametrize("file", ["model/weights", "reports/accuracy.json", "manifest.json"])
def test_every_flipped_byte_is_detected(tmp_path: Path, file: str) -> None:
    path = publish(Store(tmp_path))
    content = bytearray((path / file).read_bytes())
    for position in range(0, len(content), max(1, len(content) // 40)):
        changed = bytearray(content)
        changed[position] ^= 0x01
        (path / file).write_bytes(changed)
        with pytest.raises(DamagedArtifactError):
            verify(open_artifact(path))
    (path / file).write_bytes(content)
    verify(open_artifact(path))


def test_missing_truncated_linked_and_extra_files_are_named(tmp_path: Path) -> None:
    path = publish(Store(tmp_path))
    weights = path / "model" / "weights"
    content = weights.read_bytes()
    (path / "model" / "extra").write_text("x")
    weights.write_bytes(content[:100])
    with pytest.raises(
        DamagedArtifactError, match=r"100 bytes, 1064 expected(.|\n)*extra: not in the manifest"
    ):
        verify(open_artifact(path))
    (path / "model" / "extra").unlink()
    weights.unlink()
    (tmp_path / "elsewhere").write_bytes(content)
    weights.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(DamagedArtifactError, match="missing"):
        verify(open_artifact(path))


def test_an_artifact_under_another_name_is_not_used(tmp_path: Path) -> None:
    store = Store(tmp_path)
    publish(store).rename(tmp_path / ("p-" + "b" * 12))
    with pytest.raises(DamagedArtifactError, match="holds the artifact"):
        store.find("p", "b" * 64)


def test_a_newer_schema_is_refused(tmp_path: Path) -> None:
    path = publish(Store(tmp_path)) / "manifest.json"
    path.write_text(path.read_text().replace('"schema_version": 1', '"schema_version": 99'))
    with pytest.raises(DamagedArtifactError, match="newer"):
        open_artifact(path.parent)


def test_a_folder_without_a_manifest_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is not an artifact"):
        open_artifact(tmp_path)


def test_garbage_excludes_ancestors_and_locked_artifacts(tmp_path: Path) -> None:
    store = Store(tmp_path)
    parent = publish(store, "a" * 64)
    child = publish(store, "b" * 64, {"parent": "a" * 64})
    unused = publish(store, "c" * 64)
    staged = store.staging("d" * 64)
    for artifact_id in ("a" * 64, "b" * 64, "c" * 64):
        store.discard(store.root / ".staging" / artifact_id[:12])
    step = RunStep(name="s", artifact=child.name, id="b" * 64, manifest="", parent=None)
    with save_run(store, RunRecord(pipeline="p", command="", steps=(step,), gates=())):
        pass
    assert set(collect(store, dry_run=True).removed) == {unused, staged}
    with store.lock("c" * 64):
        assert set(collect(store, dry_run=True).removed) == {staged}
    with store.session(["c" * 64, "d" * 64]):
        assert not collect(store, dry_run=False).removed, "a running command needs them"
    assert set(collect(store, dry_run=False).removed) == {unused, staged}
    assert set(store.artifacts()) == {parent, child}


def _hold(root: Path, ready) -> None:
    with Store(root).lock("a" * 64):
        ready.set()
        time.sleep(0.5)


def test_a_lock_makes_another_process_wait_and_reports_it(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    ready = context.Event()
    holder = context.Process(target=_hold, args=(tmp_path, ready))
    holder.start()
    assert ready.wait(30)
    waited = []
    with Store(tmp_path).lock("a" * 64, lambda: waited.append(True)):
        pass
    holder.join()
    assert waited


def test_a_store_that_cannot_be_written_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageError):
        Store(tmp_path / "file" / "store").check_writable()
