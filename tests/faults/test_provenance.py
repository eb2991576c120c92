"""Signatures and archives: tampering is refused, and leaves nothing in the store."""

from __future__ import annotations

import io
import json
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import zstandard

from compressor.analysis.sbom import environment_sbom
from compressor.artifacts.archive import Demands, archive_artifact, restore_artifact
from compressor.artifacts.artifact import Artifact, open_artifact, verify
from compressor.artifacts.keyring import PUBLIC_KEY
from compressor.artifacts.manifest import Manifest
from compressor.artifacts.signing import PRIVATE_KEY, SIGNATURE, check_signature, sign
from compressor.artifacts.store import Store
from compressor.artifacts.trust import IMPORTED
from compressor.errors import DamagedArtifactError, StorageError, UsageError
from tests.support.forked import run_forked
from tests.support.tiny_files import tiny_onnx
from tests.torture.stores import warm_up

ONNX = "model/model.onnx"
Member = tuple[tarfile.TarInfo, bytes]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a store of one artifact and two key pairs."""
    warm_up()
    home = tmp_path_factory.mktemp("provenance")
    (home / "model").mkdir()
    (home / "model" / "model.onnx").write_bytes(tiny_onnx())
    assert run_forked("pass", "toy", home / "model", "-o", home / "store").code == 0
    for name in ("ours", "theirs"):
        subprocess.run(
            ["openssl", "genpkey", "-algorithm", "ed25519", "-out", home / f"{name}.pem"],
            check=True,
        )
        private, public = home / f"{name}.pem", home / f"{name}.pub"
        command = ["openssl", "pkey", "-in", private, "-pubout", "-out", public]
        subprocess.run(command, check=True)
    return home


@pytest.fixture
def artifact(home: Path, tmp_path: Path) -> Artifact:
    """Return an unsigned copy of the artifact."""
    source = next((home / "store").glob("toy-*"))
    subprocess.run(["cp", "-r", source, tmp_path / source.name], check=True)
    return open_artifact(tmp_path / source.name)


def write_archive(target: Path, members: list[Member]) -> Path:
    """Write members into a .tar.zst file."""
    with zstandard.open(target, "wb") as raw, tarfile.open(fileobj=raw, mode="w|") as tar:
        for info, content in members:
            tar.addfile(info, io.BytesIO(content))
    return target


def read_archive(archive: Path) -> list[Member]:
    """Return the members of a .tar.zst file."""
    with zstandard.open(archive, "rb") as raw, tarfile.open(fileobj=raw, mode="r|") as tar:
        return [(info, tar.extractfile(info).read()) for info in tar]  # type: ignore[union-attr]


def member(name: str, content: bytes = b"", **changes: Any) -> Member:
    """Return a tar member with fields of its header replaced."""
    info = tarfile.TarInfo(name)
    info.size = len(content)
    for key, value in changes.items():
        setattr(info, key, value)
    return info, content


def test_an_archive_restores_to_the_same_bytes(
    home: Path, artifact: Artifact, tmp_path: Path
) -> None:
    sign(artifact.path, home / "ours.pem")
    archive_artifact(artifact.path, tmp_path / "one.tar.zst")
    archive_artifact(artifact.path, tmp_path / "two.tar.zst")
    assert (tmp_path / "one.tar.zst").read_bytes() == (tmp_path / "two.tar.zst").read_bytes()
    store = Store(tmp_path / "store")
    demands = Demands(signed=True, key=home / "ours.pub")
    restored, is_new = restore_artifact(tmp_path / "one.tar.zst", store, demands)
    assert is_new
    verify(restored)
    assert {path.relative_to(restored.path) for path in restored.path.rglob("*")} == {
        Path(IMPORTED),
        *(path.relative_to(artifact.path) for path in artifact.path.rglob("*")),
    }
    assert (restored.path / "manifest.json").read_bytes() == (
        artifact.path / "manifest.json"
    ).read_bytes()
    assert restore_artifact(tmp_path / "one.tar.zst", store, Demands()) == (
        restored,
        False,
    )
    with pytest.raises(UsageError, match="already exists"):
        archive_artifact(artifact.path, tmp_path / "one.tar.zst")


def test_a_signature_covers_the_manifest_and_its_key(
    home: Path, artifact: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(DamagedArtifactError, match="is not signed"):
        check_signature(artifact.path, home / "ours.pub")
    monkeypatch.setenv(PRIVATE_KEY, (home / "ours.pem").read_text())
    monkeypatch.setenv(PUBLIC_KEY, (home / "ours.pub").read_text())
    sign(artifact.path, None)
    check_signature(artifact.path, None)
    with pytest.raises(DamagedArtifactError, match="does not match the manifest"):
        check_signature(artifact.path, home / "theirs.pub")
    manifest = (artifact.path / "manifest.json").read_text()
    changed = Manifest.model_validate_json(manifest).model_copy(update={"seed": 7}).sealed()
    (artifact.path / "manifest.json").write_text(changed.model_dump_json(indent=1))
    verify(open_artifact(artifact.path))  # consistent …
    with pytest.raises(DamagedArtifactError, match="does not match the manifest"):
        check_signature(artifact.path, None)  # … but not the signed content
    (artifact.path / "manifest.json").write_text(manifest)
    for wrong in (b"", b"AAAA", b"*" * 50, b"A" * 2000, b"\xff" * 88):
        (artifact.path / SIGNATURE).write_bytes(wrong)
        with pytest.raises(DamagedArtifactError, match="does not match the manifest"):
            check_signature(artifact.path, None)


def test_invalid_and_missing_keys_are_refused(
    home: Path, artifact: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(PRIVATE_KEY, raising=False)
    with pytest.raises(UsageError, match="there is no private key"):
        sign(artifact.path, None)
    (tmp_path / "text.pem").write_text("no key")
    subprocess.run(
        ["openssl", "genpkey", "-algorithm", "x25519", "-out", tmp_path / "other.pem"], check=True
    )
    for key in (tmp_path / "text.pem", tmp_path / "other.pem", home / "ours.pub"):
        with pytest.raises(UsageError, match="is not a private Ed25519 key"):
            sign(artifact.path, key)
    with pytest.raises(UsageError, match="does not exist"):
        sign(artifact.path, tmp_path / "none.pem")


def _forged(members: list[Member], change: Callable[[dict[str, Any]], None]) -> list[Member]:
    """Return the members under a changed manifest with a valid digest."""
    tree = json.loads(members[0][1])
    change(tree)
    sealed = Manifest.model_validate(tree).sealed().model_dump_json().encode()
    return [member("manifest.json", sealed), *members[1:]]


def _list_empty_file(name: str) -> Callable[[list[Member]], list[Member]]:
    def forge(members: list[Member]) -> list[Member]:
        entry = {
            "sha256": "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
            "bytes": 0,
        }
        return [*_forged(members, lambda tree: tree["files"].update({name: entry})), member(name)]

    return forge


def _replace(name: str, *replacements: Member) -> Callable[[list[Member]], list[Member]]:
    return lambda members: [*(m for m in members if m[0].name != name), *replacements]


def _bomb(members: list[Member]) -> list[Member]:
    """Return a file of 4 MiB where the manifest states 160 bytes."""
    return _replace(ONNX, member(ONNX, bytes(1 << 22)))(members)


def _claims_exabyte(members: list[Member]) -> list[Member]:
    return _forged(members, lambda tree: tree["files"]["model/model.onnx"].update(bytes=1 << 60))


def _flip_byte(members: list[Member]) -> list[Member]:
    return [
        (info, content[:-1] + b"x") if info.name == "model/model.onnx" else (info, content)
        for info, content in members
    ]


def _huge_header(members: list[Member]) -> list[Member]:
    """Return a member whose name alone takes 4 MiB."""
    return [members[0], member("x" * (1 << 22))]


TAMPERED: dict[str, tuple[Callable[[list[Member]], list[Member]], str]] = {
    "a path that leaves the artifact": (
        _list_empty_file("model/../../outside"),
        "paths that artifacts never have",
    ),
    "an absolute path": (_list_empty_file("/tmp/outside"), "paths that artifacts never have"),
    "a Windows path": (
        _list_empty_file("model/..\\..\\outside"),
        "paths that artifacts never have",
    ),
    "a file beside the model": (
        _list_empty_file("manifest.json.sig"),
        "paths that artifacts never have",
    ),
    "a path outside that the manifest does not list": (
        lambda members: [*members, member("../outside", b"x")],
        "not in its manifest",
    ),
    "a link": (_replace(ONNX, member(ONNX, type=tarfile.SYMTYPE, linkname="/etc/passwd")), "link"),
    "a hard link": (
        _replace(ONNX, member(ONNX, type=tarfile.LNKTYPE, linkname="manifest.json")),
        "link",
    ),
    "a device": (lambda members: [*members, member("model/null", type=tarfile.CHRTYPE)], "device"),
    "a folder": (lambda members: [*members, member("model", type=tarfile.DIRTYPE)], "folder"),
    "an unlisted file": (
        lambda members: [*members, member("model/more.onnx", b"x")],
        "not in its manifest",
    ),
    "a file twice": (lambda members: [*members, members[1]], "is a duplicate"),
    "a file that is missing": (_replace("model/model.onnx"), "it lacks model/model.onnx"),
    "a changed byte": (_flip_byte, "its content has changed"),
    "a decompression bomb": (_bomb, "4194304 bytes"),
    "a huge header": (_huge_header, "header is too large"),
    "a changed manifest": (
        lambda members: [
            member("manifest.json", members[0][1].replace(b'"seed": 0', b'"seed": 1')),
            *members[1:],
        ],
        "own digest",
    ),
    "a pass name that is a path": (
        lambda members: _forged(members, lambda tree: tree["pass_"].update(name="../x")),
        "invalid pass name or id",
    ),
    "a manifest at the end": (lambda members: [*members[1:], members[0]], "first member is not"),
    "no manifest": (lambda members: members[1:], "first member is not"),
    "an empty archive": (lambda _: [], "first member is not"),
}


@pytest.mark.parametrize("tampering", TAMPERED)
def test_a_tampered_archive_is_refused(artifact: Artifact, tmp_path: Path, tampering: str) -> None:
    change, message = TAMPERED[tampering]
    archive_artifact(artifact.path, tmp_path / "sound.tar.zst")
    archive = write_archive(
        tmp_path / "tampered.tar.zst", change(read_archive(tmp_path / "sound.tar.zst"))
    )
    before = {path for path in tmp_path.rglob("*") if "store" not in path.parts}
    with pytest.raises(DamagedArtifactError, match=message):
        restore_artifact(archive, Store(tmp_path / "store"), Demands())
    assert {path for path in tmp_path.rglob("*") if "store" not in path.parts} == before, (
        "nothing was written outside the store"
    )
    assert not list(Store(tmp_path / "store").artifacts())
    assert not list((tmp_path / "store" / ".staging").iterdir())


def test_an_archive_larger_than_the_free_space_is_refused(
    artifact: Artifact, tmp_path: Path
) -> None:
    archive_artifact(artifact.path, tmp_path / "sound.tar.zst")
    archive = write_archive(
        tmp_path / "huge.tar.zst", _claims_exabyte(read_archive(tmp_path / "sound.tar.zst"))
    )
    with pytest.raises(StorageError, match="GB free"):
        restore_artifact(archive, Store(tmp_path / "store"), Demands())


@pytest.mark.parametrize("content", [b"", b"no archive", b"\x28\xb5\x2f\xfd"])
def test_a_file_that_is_not_an_archive_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.tar.zst").write_bytes(content)
    with pytest.raises(DamagedArtifactError, match="is refused"):
        restore_artifact(tmp_path / "x.tar.zst", Store(tmp_path / "store"), Demands())


def test_a_truncated_archive_is_refused(artifact: Artifact, tmp_path: Path) -> None:
    size = archive_artifact(artifact.path, tmp_path / "x.tar.zst")
    (tmp_path / "x.tar.zst").write_bytes((tmp_path / "x.tar.zst").read_bytes()[: size // 2])
    with pytest.raises(DamagedArtifactError, match="is refused"):
        restore_artifact(tmp_path / "x.tar.zst", Store(tmp_path / "store"), Demands())


def test_the_commands_exit_with_4_for_a_wrong_signature(
    home: Path, artifact: Artifact, tmp_path: Path
) -> None:
    archive = tmp_path / "out.tar.zst"
    assert run_forked("sign", artifact.path, "--key", home / "ours.pem").code == 0
    assert run_forked("verify", artifact.path, "--signature", "--key", home / "ours.pub").code == 0
    assert (
        run_forked("verify", artifact.path, "--signature", "--key", home / "theirs.pub").code == 4
    )
    assert run_forked("archive", artifact.path, archive).code == 0
    restore = ("restore", archive, "-o", tmp_path / "store", "--signature", "--key")
    refused = run_forked(*restore, home / "theirs.pub")
    assert refused.code == 4
    assert "Traceback" not in refused.printed
    assert run_forked(*restore, home / "ours.pub").code == 0
    assert run_forked("restore", tmp_path / "none.tar.zst", "-o", tmp_path / "store").code == 2


def test_the_sbom_lists_the_installed_packages() -> None:
    sbom = environment_sbom()
    assert (sbom["bomFormat"], sbom["specVersion"]) == ("CycloneDX", "1.6")
    assert sbom["metadata"]["component"]["name"] == "autoglm-compress"
    torch = next(row for row in sbom["components"] if row["name"] == "torch")
    assert torch["purl"].startswith("pkg:pypi/torch@")
