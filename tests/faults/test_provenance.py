"""Signatures and archives that somebody has tampered with are refused, and nothing of them stays in the store."""

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
from compressor.artifacts.archive import export_artifact, import_artifact
from compressor.artifacts.manifest import Manifest
from compressor.artifacts.signing import PRIVATE_KEY, PUBLIC_KEY, SIGNATURE, check_signature, sign
from compressor.artifacts.store import Artifact, Store, open_artifact, verify
from compressor.errors import DamagedArtifactError, StorageError, UsageError
from tests.support.cli import cli
from tests.support.tiny_files import tiny_onnx

ONNX = "model/model.onnx"
Member = tuple[tarfile.TarInfo, bytes]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An artifact, two key pairs."""
    home = tmp_path_factory.mktemp("made")
    (home / "model").mkdir()
    (home / "model" / "model.onnx").write_bytes(tiny_onnx())
    assert cli("pass", "toy", home / "model", "-o", home / "store").returncode == 0
    for name in ("ours", "theirs"):
        subprocess.run(
            ["openssl", "genpkey", "-algorithm", "ed25519", "-out", home / f"{name}.pem"],
            check=True,
        )
        command = [
            "openssl",
            "pkey",
            "-in",
            home / f"{name}.pem",
            "-pubout",
            "-out",
            home / f"{name}.pub",
        ]
        subprocess.run(command, check=True)
    return home


@pytest.fixture
def artifact(made: Path, tmp_path: Path) -> Artifact:
    """A copy of it, not signed."""
    source = next((made / "store").glob("toy-*"))
    subprocess.run(["cp", "-r", source, tmp_path / source.name], check=True)
    return open_artifact(tmp_path / source.name)


def packed(target: Path, members: list[Member]) -> Path:
    with zstandard.open(target, "wb") as raw, tarfile.open(fileobj=raw, mode="w|") as tar:
        for info, content in members:
            tar.addfile(info, io.BytesIO(content))
    return target


def unpacked(archive: Path) -> list[Member]:
    with zstandard.open(archive, "rb") as raw, tarfile.open(fileobj=raw, mode="r|") as tar:
        return [(info, tar.extractfile(info).read()) for info in tar]  # type: ignore[union-attr]


def member(name: str, content: bytes = b"", **changes: Any) -> Member:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    for key, value in changes.items():
        setattr(info, key, value)
    return info, content


def test_there_and_back_again_to_the_same_bytes(
    made: Path, artifact: Artifact, tmp_path: Path
) -> None:
    sign(artifact.path, made / "ours.pem")
    export_artifact(artifact, tmp_path / "one.tar.zst")
    export_artifact(artifact, tmp_path / "two.tar.zst")
    assert (tmp_path / "one.tar.zst").read_bytes() == (tmp_path / "two.tar.zst").read_bytes()
    store = Store(tmp_path / "store")
    found, new = import_artifact(tmp_path / "one.tar.zst", store, made / "ours.pub", signed=True)
    assert new
    verify(found)
    assert {path.relative_to(found.path) for path in found.path.rglob("*")} == {
        path.relative_to(artifact.path) for path in artifact.path.rglob("*")
    }
    assert (found.path / "manifest.json").read_bytes() == (
        artifact.path / "manifest.json"
    ).read_bytes()
    assert import_artifact(tmp_path / "one.tar.zst", store, None, signed=False) == (found, False)
    with pytest.raises(UsageError, match="is there already"):
        export_artifact(artifact, tmp_path / "one.tar.zst")


def test_signatures(made: Path, artifact: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DamagedArtifactError, match="is not signed"):
        check_signature(artifact.path, made / "ours.pub")
    monkeypatch.setenv(PRIVATE_KEY, (made / "ours.pem").read_text())
    monkeypatch.setenv(PUBLIC_KEY, (made / "ours.pub").read_text())
    sign(artifact.path, None)
    check_signature(artifact.path, None)
    with pytest.raises(DamagedArtifactError, match="does not fit"):
        check_signature(artifact.path, made / "theirs.pub")
    manifest = (artifact.path / "manifest.json").read_text()
    changed = Manifest.model_validate_json(manifest).model_copy(update={"seed": 7}).sealed()
    (artifact.path / "manifest.json").write_text(changed.model_dump_json(indent=1))
    verify(open_artifact(artifact.path))  # whole in itself …
    with pytest.raises(DamagedArtifactError, match="does not fit"):
        check_signature(artifact.path, None)  # … and not what was signed
    (artifact.path / "manifest.json").write_text(manifest)
    for wrong in (b"", b"AAAA", b"*" * 50, b"A" * 2000, b"\xff" * 88):
        (artifact.path / SIGNATURE).write_bytes(wrong)
        with pytest.raises(DamagedArtifactError, match="does not fit"):
            check_signature(artifact.path, None)


def test_keys_that_are_none(
    made: Path, artifact: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(PRIVATE_KEY, raising=False)
    with pytest.raises(UsageError, match="there is no private key"):
        sign(artifact.path, None)
    (tmp_path / "text.pem").write_text("no key")
    subprocess.run(
        ["openssl", "genpkey", "-algorithm", "x25519", "-out", tmp_path / "other.pem"], check=True
    )
    for name in (tmp_path / "text.pem", tmp_path / "other.pem", made / "ours.pub"):
        with pytest.raises(UsageError, match="holds no private Ed25519 key"):
            sign(artifact.path, name)
    with pytest.raises(StorageError):
        sign(artifact.path, tmp_path / "none.pem")


def _forged(members: list[Member], change: Callable[[dict[str, Any]], None]) -> list[Member]:
    """The same members under a manifest that somebody changed and sealed anew."""
    tree = json.loads(members[0][1])
    change(tree)
    sealed = Manifest.model_validate(tree).sealed().model_dump_json().encode()
    return [member("manifest.json", sealed), *members[1:]]


def _escaping(name: str) -> Callable[[list[Member]], list[Member]]:
    def forge(members: list[Member]) -> list[Member]:
        entry = {
            "sha256": "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
            "bytes": 0,
        }
        return [*_forged(members, lambda tree: tree["files"].update({name: entry})), member(name)]

    return forge


def _with(name: str, *more: Member) -> Callable[[list[Member]], list[Member]]:
    return lambda members: [one for one in members if one[0].name != name] + list(more)


def _bomb(members: list[Member]) -> list[Member]:
    """A file of a gigabyte where 160 bytes are promised."""
    return [one for one in members if one[0].name != "model/model.onnx"] + [
        member("model/model.onnx", bytes(1 << 22))
    ]


def _claims_everything(members: list[Member]) -> list[Member]:
    return _forged(members, lambda tree: tree["files"]["model/model.onnx"].update(bytes=1 << 60))


def _flipped(members: list[Member]) -> list[Member]:
    return [
        (info, content[:-1] + b"x") if info.name == "model/model.onnx" else (info, content)
        for info, content in members
    ]


def _header(members: list[Member]) -> list[Member]:
    """A name so long that its header alone takes memory."""
    return [members[0], member("x" * (1 << 22))]


TAMPERED: dict[str, tuple[Callable[[list[Member]], list[Member]], str]] = {
    "a path that leads out": (_escaping("model/../../outside"), "paths that no artifact has"),
    "an absolute path": (_escaping("/tmp/outside"), "paths that no artifact has"),
    "a path of another system": (_escaping("model/..\\..\\outside"), "paths that no artifact has"),
    "a file beside the model": (_escaping("manifest.json.sig"), "paths that no artifact has"),
    "a path outside that no manifest lists": (
        lambda all_: [*all_, member("../outside", b"x")],
        "not in its manifest",
    ),
    "a link": (_with(ONNX, member(ONNX, type=tarfile.SYMTYPE, linkname="/etc/passwd")), "link"),
    "a hard link": (
        _with(ONNX, member(ONNX, type=tarfile.LNKTYPE, linkname="manifest.json")),
        "link",
    ),
    "a device": (lambda all_: [*all_, member("model/null", type=tarfile.CHRTYPE)], "device"),
    "a folder": (lambda all_: [*all_, member("model", type=tarfile.DIRTYPE)], "folder"),
    "another file": (lambda all_: [*all_, member("model/more.onnx", b"x")], "not in its manifest"),
    "a file twice": (lambda all_: [*all_, all_[1]], "twice"),
    "a file that is missing": (_with("model/model.onnx"), "it lacks model/model.onnx"),
    "a byte that changed": (_flipped, "its content has changed"),
    "a bomb": (_bomb, "4194304 bytes"),
    "a header like a bomb": (_header, "larger than any"),
    "a manifest that was changed": (
        lambda all_: [
            member("manifest.json", all_[0][1].replace(b'"seed": 0', b'"seed": 1')),
            *all_[1:],
        ],
        "own digest",
    ),
    "a pass that is a path": (
        lambda all_: _forged(all_, lambda tree: tree["pass_"].update(name="../x")),
        "a pass or an id",
    ),
    "a manifest that comes last": (lambda all_: [*all_[1:], all_[0]], "first member is not"),
    "no manifest": (lambda all_: all_[1:], "first member is not"),
    "nothing": (lambda _: [], "first member is not"),
}


@pytest.mark.parametrize("how", TAMPERED)
def test_a_tampered_archive_is_refused(artifact: Artifact, tmp_path: Path, how: str) -> None:
    change, why = TAMPERED[how]
    export_artifact(artifact, tmp_path / "sound.tar.zst")
    archive = packed(tmp_path / "tampered.tar.zst", change(unpacked(tmp_path / "sound.tar.zst")))
    before = {path for path in tmp_path.rglob("*") if "store" not in path.parts}
    with pytest.raises(DamagedArtifactError, match=why):
        import_artifact(archive, Store(tmp_path / "store"), None, signed=False)
    assert {path for path in tmp_path.rglob("*") if "store" not in path.parts} == before, (
        "nothing got out"
    )
    assert not list(Store(tmp_path / "store").artifacts())
    assert not list((tmp_path / "store" / ".staging").iterdir())


def test_a_manifest_that_promises_more_than_the_disk_holds(
    artifact: Artifact, tmp_path: Path
) -> None:
    export_artifact(artifact, tmp_path / "sound.tar.zst")
    archive = packed(
        tmp_path / "huge.tar.zst", _claims_everything(unpacked(tmp_path / "sound.tar.zst"))
    )
    with pytest.raises(StorageError, match="GB free"):
        import_artifact(archive, Store(tmp_path / "store"), None, signed=False)


@pytest.mark.parametrize("content", [b"", b"no archive", b"\x28\xb5\x2f\xfd"])
def test_what_is_no_archive(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.tar.zst").write_bytes(content)
    with pytest.raises(DamagedArtifactError, match="is refused"):
        import_artifact(tmp_path / "x.tar.zst", Store(tmp_path / "store"), None, signed=False)


def test_a_cut_archive(artifact: Artifact, tmp_path: Path) -> None:
    size = export_artifact(artifact, tmp_path / "x.tar.zst")
    (tmp_path / "x.tar.zst").write_bytes((tmp_path / "x.tar.zst").read_bytes()[: size // 2])
    with pytest.raises(DamagedArtifactError, match="is refused"):
        import_artifact(tmp_path / "x.tar.zst", Store(tmp_path / "store"), None, signed=False)


def test_the_commands_and_their_exit_codes(made: Path, artifact: Artifact, tmp_path: Path) -> None:
    archive = tmp_path / "out.tar.zst"
    assert cli("sign", artifact.path, "--key", made / "ours.pem").returncode == 0
    assert cli("verify", artifact.path, "--signature", "--key", made / "ours.pub").returncode == 0
    assert cli("verify", artifact.path, "--signature", "--key", made / "theirs.pub").returncode == 4
    assert cli("export", artifact.path, archive).returncode == 0
    refused = cli(
        "import", archive, "-o", tmp_path / "store", "--signature", "--key", made / "theirs.pub"
    )
    assert refused.returncode == 4
    assert "Traceback" not in refused.stderr
    assert (
        cli(
            "import", archive, "-o", tmp_path / "store", "--signature", "--key", made / "ours.pub"
        ).returncode
        == 0
    )
    assert cli("import", tmp_path / "none.tar.zst", "-o", tmp_path / "store").returncode == 1


def test_the_bill_names_what_is_installed() -> None:
    found = environment_sbom()
    assert (found["bomFormat"], found["specVersion"]) == ("CycloneDX", "1.6")
    assert found["metadata"]["component"]["name"] == "autoglm-compress"
    torch = next(one for one in found["components"] if one["name"] == "torch")
    assert torch["purl"].startswith("pkg:pypi/torch@")
