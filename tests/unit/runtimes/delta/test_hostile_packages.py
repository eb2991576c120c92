"""Damaged and hostile packages are refused: with one error, nothing written, memory bounded."""

import hashlib
import json
import random
import resource
import zlib

import numpy as np
import pytest
import safetensors.numpy
import zstandard

from compressor.artifacts.fingerprint import canonical_json
from compressor.errors import CompressError, DamagedArtifactError, UsageError
from compressor.runtimes.delta.apply import apply_package
from compressor.runtimes.delta.build import result_of
from compressor.runtimes.delta.package import read_package
from compressor.runtimes.delta.signatures import sign_package
from tests.support.deltas import application, float_base, make_package, write_keys, written_adapter

SHAPES = {"model.layers.0.self_attn.q_proj": (64, 64), "model.layers.1.self_attn.v_proj": (32, 64)}
BOMB_BYTES = 1 << 33


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with a base, and packages of an adapter: int8, float16, exact and signed."""
    home = tmp_path_factory.mktemp("packages")
    base = float_base(home / "base")
    adapter = written_adapter(home / "model", base, SHAPES)
    for encoding in ("int8", "float16", "exact"):
        made, _ = make_package(adapter, base, home / encoding, encoding=encoding)
        made.rename(home / f"{encoding}.aglmdelta")
    private, _ = write_keys(home)
    sign_package(home / "int8.aglmdelta", private, home / "signed.aglmdelta")
    return home


def parts(file):
    """Return manifest and payload of a package."""
    package = read_package(file)
    with package.payload() as source:
        payload = source.read(package.manifest.payload.bytes)
    return package.manifest.model_dump(mode="json"), payload


def forged(home, manifest, payload, **payload_fields):
    """Write a package whose header and hashes fit its content, whatever that is."""
    fields = {"sha256": hashlib.sha256(payload).hexdigest(), "bytes": len(payload)}
    manifest["payload"] |= {**fields, **payload_fields}
    content = canonical_json(manifest).encode()
    lengths = (len(content).to_bytes(8, "little"), len(payload).to_bytes(8, "little"))
    file = home / "forged.aglmdelta"
    file.write_bytes(b"AGLMDLT1" + b"".join(lengths) + content + payload)
    return file


def refusal(file, home, tmp_path, **fields):
    """Apply a package that has to be refused; return the message."""
    with pytest.raises(DamagedArtifactError) as error:
        apply_package(application(file, home / "base", tmp_path / "out", **fields))
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "out.updates" / "staged").exists()
    return error.value.what


def test_a_flipped_byte_anywhere_is_refused(home, tmp_path):
    content = (home / "signed.aglmdelta").read_bytes()
    manifest_end = 24 + int.from_bytes(content[8:16], "little")
    payload_end = len(content) - 64
    regions = [(0, 8), (8, 16), (16, 24), (24, manifest_end)]
    regions += [(manifest_end, payload_end), (payload_end, len(content))]
    source = random.Random(7)
    for start, end in regions:
        for position in {start, end - 1, *(source.randrange(start, end) for _ in range(6))}:
            changed = bytearray(content)
            changed[position] ^= 1 << source.randrange(8)
            (tmp_path / "flipped").write_bytes(changed)
            refusal(tmp_path / "flipped", home, tmp_path, key=home / "key.pub")


@pytest.mark.parametrize("encoding", ["int8", "float16", "exact"])
def test_a_truncated_or_extended_package_is_refused(home, tmp_path, encoding):
    content = (home / f"{encoding}.aglmdelta").read_bytes()
    for size in (0, 7, 23, 24, 100, len(content) - 1):
        (tmp_path / "cut").write_bytes(content[:size])
        refusal(tmp_path / "cut", home, tmp_path)
    (tmp_path / "cut").write_bytes(content + b"!")
    refusal(tmp_path / "cut", home, tmp_path)


@pytest.mark.parametrize(
    "name", ["../x", "/etc/x", "a/../../x", "C:x", "a\\b", "x\n", ".", "", "a//b"]
)
def test_names_that_leave_the_folder_are_refused(home, tmp_path, name):
    manifest, payload = parts(home / "exact.aglmdelta")
    manifest["files"][0]["name"] = name
    refusal(forged(tmp_path, manifest, payload), home, tmp_path)
    manifest, payload = parts(home / "int8.aglmdelta")
    manifest["texts"][name] = "x"
    refusal(forged(tmp_path, manifest, payload), home, tmp_path)


def test_a_file_of_the_base_cannot_be_named_by_a_path(home, tmp_path):
    (tmp_path / "secret").write_text("secret")
    manifest, payload = parts(home / "exact.aglmdelta")
    manifest["files"][0] |= {"base": "../secret", "blocks": [], "bytes": 6}
    manifest["payload"]["unpacked"] = sum(
        block["stored"] for file in manifest["files"] for block in file["blocks"]
    )
    kept = payload[len(payload) - manifest["payload"]["unpacked"] :]
    what = refusal(forged(tmp_path, manifest, kept), home, tmp_path)
    assert "which the base lacks" in what


def test_bombs_are_refused_without_the_memory_or_the_disk_that_they_claim(home, tmp_path):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    manifest, payload = parts(home / "int8.aglmdelta")
    zeros = zlib.compressobj(9)
    bomb = b"".join(zeros.compress(bytes(1 << 24)) for _ in range(16)) + zeros.flush()
    what = refusal(forged(tmp_path, manifest, bomb, zlib=True), home, tmp_path)
    assert "longer than its tensors" in what
    manifest, payload = parts(home / "exact.aglmdelta")
    frame = zstandard.ZstdCompressor().compress(bytes(1 << 28))
    old = manifest["files"][0]["blocks"][0]["stored"]
    manifest["files"][0]["blocks"][0]["stored"] = len(frame)
    size = manifest["payload"]["unpacked"] - old + len(frame)
    refusal(forged(tmp_path, manifest, frame + payload[old:], unpacked=size), home, tmp_path)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 150 << 10, f"{grown} KiB"


def test_sizes_that_no_disk_has_are_refused_before_anything_is_written(home, tmp_path):
    manifest, payload = parts(home / "int8.aglmdelta")
    manifest["result"]["bytes"] = 1 << 50
    with pytest.raises(CompressError, match="GB free"):
        apply_package(
            application(forged(tmp_path, manifest, payload), home / "base", tmp_path / "out")
        )
    manifest, payload = parts(home / "int8.aglmdelta")
    manifest["tensors"][0]["shape"] = [1 << 40, 8]
    assert "larger than any tensor" in refusal(forged(tmp_path, manifest, payload), home, tmp_path)


def test_values_that_are_not_finite_are_refused(home, tmp_path):
    for encoding, value in (("float16", np.float16("nan")), ("int8", np.float32("inf"))):
        manifest, payload = parts(home / f"{encoding}.aglmdelta")
        plain = bytearray(zlib.decompress(payload) if manifest["payload"]["zlib"] else payload)
        plain[: value.nbytes] = value.tobytes()
        what = refusal(forged(tmp_path, manifest, bytes(plain), zlib=False), home, tmp_path)
        assert "not finite" in what


def test_files_with_nan_are_refused_though_their_digests_fit(home, tmp_path):
    manifest, _ = parts(home / "exact.aglmdelta")
    folder = tmp_path / "result"
    folder.mkdir()
    weights = {"base_model.model.x.lora_A.weight": np.full((2, 2), np.nan, np.float32)}
    safetensors.numpy.save_file(weights, folder / "adapter_model.safetensors")
    content = (folder / "adapter_model.safetensors").read_bytes()
    frame = zstandard.ZstdCompressor().compress(content)
    block = {"bytes": len(content), "stored": len(frame), "start": 0, "prefix": 0}
    manifest["files"] = [
        {
            "name": "adapter_model.safetensors",
            "bytes": len(content),
            "sha256": hashlib.sha256(content).hexdigest(),
            "base": None,
            "blocks": [block],
        }
    ]
    manifest["result"] = result_of(folder, "adapter").model_dump(mode="json")
    what = refusal(forged(tmp_path, manifest, frame, unpacked=len(frame)), home, tmp_path)
    assert "NaN or infinity" in what


def test_another_digest_than_the_announced_one_is_refused(home, tmp_path):
    for encoding in ("int8", "exact"):
        manifest, payload = parts(home / f"{encoding}.aglmdelta")
        manifest["result"]["digest"] = "ab" * 32
        what = refusal(forged(tmp_path, manifest, payload), home, tmp_path)
        assert "announces abababababab" in what


def test_manifests_that_are_no_manifests_are_refused(home, tmp_path):
    manifest, payload = parts(home / "int8.aglmdelta")
    for change in (
        {"version": 2},
        {"counter": 0},
        {"counter": True},
        {"surplus": 1},
        {"expires": "soon"},
        {"tensors": []},
        {"tensors": [*manifest["tensors"], manifest["tensors"][0]]},
        {"texts": {"a": "", "A": ""}},
        {"name": "../x"},
    ):
        refusal(forged(tmp_path, {**manifest, **change}, payload), home, tmp_path)
    spaced = json.dumps(manifest).encode()
    lengths = len(spaced).to_bytes(8, "little") + len(payload).to_bytes(8, "little")
    (tmp_path / "spaced").write_bytes(b"AGLMDLT1" + lengths + spaced + payload)
    assert "canonical" in refusal(tmp_path / "spaced", home, tmp_path)


def test_what_is_no_package_is_refused(home, tmp_path):
    (tmp_path / "text").write_text("hello, this is no package at all")
    assert "does not start as a package does" in refusal(tmp_path / "text", home, tmp_path)
    with pytest.raises(UsageError, match="does not exist"):
        apply_package(application(tmp_path / "missing", home / "base", tmp_path / "out"))
