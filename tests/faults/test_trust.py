"""Imported artifacts: marked, checked against their ids, and refused if a policy demands it."""

from __future__ import annotations

import base64
import json
import subprocess
from pathlib import Path

import pytest

from compressor.artifacts.archive import Demands, archive_artifact, restore_artifact
from compressor.artifacts.artifact import Artifact, entries_of, open_artifact, verify
from compressor.artifacts.keyring import PUBLIC_KEY, load_keyring
from compressor.artifacts.manifest import FileEntry, Manifest
from compressor.artifacts.signing import SIGNATURE, check_signature, sign
from compressor.artifacts.store import Store
from compressor.artifacts.trust import REQUIRE_SIGNATURES, import_of
from compressor.engine.plan.recomputed_id import id_problem
from compressor.errors import ConfigError, DamagedArtifactError, UsageError
from tests.support.forked import run_forked
from tests.support.tiny_files import tiny_onnx
from tests.torture.stores import warm_up

PIPELINE = """\
version: 1
name: toy
model: {path: model}
passes: [{type: toy, name: first}, {type: toy, name: second, rounds: 3}]
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a pipeline, its store, and two key pairs."""
    warm_up()
    home = tmp_path_factory.mktemp("trust")
    (home / "model").mkdir()
    (home / "model" / "model.onnx").write_bytes(tiny_onnx())
    (home / "pipeline.yaml").write_text(PIPELINE)
    built = run_forked("run", home / "pipeline.yaml", "-o", home / "store")
    assert built.code == 0, built.printed
    for name in ("ours", "theirs"):
        private, public = home / f"{name}.pem", home / f"{name}.pub"
        generate = ["openssl", "genpkey", "-algorithm", "ed25519", "-out", private]
        subprocess.run(generate, check=True)
        subprocess.run(["openssl", "pkey", "-in", private, "-pubout", "-out", public], check=True)
    return home


@pytest.fixture
def second(home: Path, tmp_path: Path) -> Artifact:
    """Return a copy of the artifact of the last step."""
    (source,) = (path for path in (home / "store").glob("toy-*") if _step(path) == "second")
    subprocess.run(["cp", "-r", source, tmp_path / source.name], check=True)
    return open_artifact(tmp_path / source.name)


def _step(path: Path) -> str:
    return open_artifact(path).manifest.step


def reseal(artifact: Artifact, **changes: object) -> Artifact:
    """Change fields of a manifest, and seal it again as an attacker would."""
    manifest = artifact.manifest.model_copy(update=changes).sealed()
    (artifact.path / "manifest.json").write_text(manifest.model_dump_json(indent=1))
    return open_artifact(artifact.path)


def change_model(artifact: Artifact) -> Artifact:
    """Change the model's bytes, and the manifest so that it fits."""
    file = artifact.path / "model" / "model.onnx"
    file.write_bytes(file.read_bytes() + b"!")
    changed = reseal(artifact, files=entries_of(artifact.path, "model"))
    verify(changed)
    return changed


def test_an_unsigned_import_is_marked_and_said_wherever_it_is_used(
    home: Path, second: Artifact, tmp_path: Path
) -> None:
    archive_artifact(change_model(second).path, tmp_path / "a.tar.zst")
    store = tmp_path / "store"
    imported = run_forked("import", tmp_path / "a.tar.zst", "-o", store)
    assert imported.code == 0, imported.printed
    assert "its signature was not checked" in imported.printed
    used = run_forked("run", home / "pipeline.yaml", "-o", store)
    assert used.code == 0, used.printed
    assert "second: imported on" in used.printed
    assert "its signature was not checked" in run_forked("show", store / second.name).printed


def test_other_bytes_under_the_id_of_an_artifact_are_refused(
    home: Path, second: Artifact, tmp_path: Path
) -> None:
    archive_artifact(change_model(second).path, tmp_path / "a.tar.zst")
    with pytest.raises(DamagedArtifactError, match="has the same id and other files"):
        restore_artifact(tmp_path / "a.tar.zst", Store(home / "store"), Demands())


def test_statements_that_the_id_covers_cannot_be_changed(
    home: Path, second: Artifact, tmp_path: Path
) -> None:
    archive_artifact(reseal(second, seed=7).path, tmp_path / "a.tar.zst")
    demands = Demands(check=id_problem)
    with pytest.raises(DamagedArtifactError, match="its id is not that of the config"):
        restore_artifact(tmp_path / "a.tar.zst", Store(tmp_path / "store"), demands)
    assert run_forked("verify", second.path).code == 4


def test_the_bytes_of_a_source_model_are_checked_against_its_id(home: Path, tmp_path: Path) -> None:
    (source,) = (home / "store").glob("source-*")
    subprocess.run(["cp", "-r", source, tmp_path / source.name], check=True)
    change_model(open_artifact(tmp_path / source.name))
    refused = run_forked("verify", tmp_path / source.name)
    assert refused.code == 4
    assert "a source model with other files" in " ".join(refused.printed.split())


def test_a_key_makes_a_signature_necessary(home: Path, second: Artifact, tmp_path: Path) -> None:
    archive_artifact(second.path, tmp_path / "unsigned.tar.zst")
    sign(second.path, home / "theirs.pem")
    archive_artifact(second.path, tmp_path / "theirs.tar.zst")
    for name in ("unsigned", "theirs"):
        command = ("import", tmp_path / f"{name}.tar.zst", "-o", tmp_path / name)
        assert run_forked(*command, "--key", home / "ours.pub").code == 4
        assert not list(Store(tmp_path / name).artifacts())
    command = ("import", tmp_path / "theirs.tar.zst", "-o", tmp_path / "s")
    signed = run_forked(*command, "--key", home / "theirs.pub")
    assert signed.code == 0, signed.printed
    assert "signed by" in signed.printed


def test_what_is_no_signature_is_not_stored(home: Path, second: Artifact, tmp_path: Path) -> None:
    for text in (b"garbage", base64.b64encode(b"short"), b""):
        (second.path / SIGNATURE).write_bytes(text)
        archive_artifact(second.path, tmp_path / "a.tar.zst")
        with pytest.raises(DamagedArtifactError, match="holds no signature"):
            restore_artifact(tmp_path / "a.tar.zst", Store(tmp_path / "store"), Demands())
        (tmp_path / "a.tar.zst").unlink()


def test_a_keyring_rotates_and_revokes_keys(home: Path, second: Artifact, tmp_path: Path) -> None:
    both = tmp_path / "both.pub"
    both.write_text((home / "ours.pub").read_text() + (home / "theirs.pub").read_text())
    sign(second.path, home / "theirs.pem")
    check_signature(second.path, both)
    entries = [
        {"name": "new", "key": (home / "ours.pub").read_text()},
        {"name": "old", "key": (home / "theirs.pub").read_text(), "revoked": "it was stolen"},
    ]
    keyring = tmp_path / "keyring.yaml"
    keyring.write_text(json.dumps({"keys": entries}))
    with pytest.raises(DamagedArtifactError, match="the key old, which is revoked: it was stolen"):
        check_signature(second.path, keyring)
    sign(second.path, home / "ours.pem")
    assert check_signature(second.path, keyring).name == "new"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("keys: []", "there is no key"),
        ("keys: [{name: a, key: nonsense}]", "is not a public Ed25519 key"),
        ("keyz: []", "unknown key 'keyz'"),
        ("-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----", "is not a public Ed25519"),
    ],
)
def test_a_keyring_that_cannot_be_read_is_refused(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "keyring.yaml").write_text(text)
    with pytest.raises((ConfigError, UsageError), match=message):
        load_keyring(tmp_path / "keyring.yaml")


def test_a_policy_refuses_unsigned_imports_and_copies_but_not_what_was_built_here(
    home: Path, second: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(PUBLIC_KEY, (home / "ours.pub").read_text())
    archive_artifact(second.path, tmp_path / "unsigned.tar.zst")
    sign(second.path, home / "ours.pem")
    archive_artifact(second.path, tmp_path / "signed.tar.zst")
    pipeline = tmp_path / "pipeline.yaml"
    pipeline.write_text(
        f"require_signatures: true\n{PIPELINE}".replace("path: model", f"path: {home}/model")
    )
    assert run_forked("run", pipeline, "-o", tmp_path / "own").code == 0
    assert run_forked("run", pipeline, "-o", tmp_path / "own").code == 0, "built here"
    unsigned = Store(tmp_path / "unsigned")
    restore_artifact(tmp_path / "unsigned.tar.zst", unsigned, Demands())
    refused = run_forked("run", pipeline, "-o", unsigned.root)
    assert refused.code == 4
    assert "is not signed" in refused.printed
    signed = Store(tmp_path / "signed")
    restored, _ = restore_artifact(tmp_path / "signed.tar.zst", signed, Demands())
    assert import_of(restored).signer == load_keyring(None).keys[0].name  # type: ignore[union-attr]
    assert run_forked("run", pipeline, "-o", signed.root).code == 0
    monkeypatch.setenv(REQUIRE_SIGNATURES, "1")
    assert run_forked("gate", unsigned.root, "--against", signed.root).code != 0
    gate = run_forked("gate", tmp_path / "own", "--against", unsigned.root / second.name)
    assert gate.code == 4
    assert "is not signed" in gate.printed
    assert run_forked("import", tmp_path / "unsigned.tar.zst", "-o", tmp_path / "x").code == 4


def test_an_import_stays_marked_when_it_is_measured_again(
    home: Path, second: Artifact, tmp_path: Path
) -> None:
    archive_artifact(second.path, tmp_path / "a.tar.zst")
    store = Store(tmp_path / "store")
    restored, _ = restore_artifact(tmp_path / "a.tar.zst", store, Demands())
    fresh = tmp_path / "store" / ".staging" / "fresh"
    (fresh / "reports").mkdir(parents=True)
    (fresh / "reports" / "note.json").write_text("{}")
    manifest: Manifest = restored.manifest
    entry = FileEntry(**entries_of(fresh, "reports")["reports/note.json"].model_dump())
    update = {"measured": "x", "reports": {"reports/note.json": entry}}
    with store.lock(restored.id):
        store.replace_reports(restored, fresh, manifest.model_copy(update=update))
    again = open_artifact(restored.path)
    assert again.manifest.measured == "x"
    assert import_of(again) is not None
    assert [path.name for path in (again.path / "reports").iterdir()] == ["note.json"]
