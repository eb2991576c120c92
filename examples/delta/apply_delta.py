"""Apply an update package with the standard library and numpy: python apply_delta.py DELTA BASE OUT

A device in another language does the same: docs/formats.md describes the bytes. It also checks the
signature (Ed25519), the counter and the expiry. Only patches (`exact`) need the module zstandard.
"""

import hashlib
import json
import sys
import zlib
from pathlib import Path

import numpy as np


def digest_of(folder):
    """Return the sha256 of the JSON of file name to the sha256 of each file."""
    files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*")}
    contents = {name: path.read_bytes() for name, path in files.items() if path.is_file()}
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}
    text = json.dumps(digests, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def read_package(file):
    """Return manifest and payload of a package."""
    content = file.read_bytes()
    content[:8] == b"AGLMDLT1" or sys.exit("not a package")
    manifest_bytes, payload_bytes = (int.from_bytes(content[i : i + 8], "little") for i in (8, 16))
    end = 24 + manifest_bytes
    manifest, payload = json.loads(content[24:end]), content[end : end + payload_bytes]
    len(content) - end - payload_bytes in (0, 64) or sys.exit("wrong lengths")
    hashlib.sha256(payload).hexdigest() == manifest["payload"]["sha256"] or sys.exit("damaged")
    if manifest["payload"]["zlib"]:
        payload = zlib.decompressobj().decompress(payload, manifest["payload"]["unpacked"])
    return manifest, payload


def dequantize(tensor, payload, start):
    """Return the values of a tensor in float32, and the offset after it."""
    shape, count = tensor["shape"], int(np.prod(tensor["shape"]))
    if tensor["encoding"] == "float16":
        halves = np.frombuffer(payload, "<f2", count, start)
        return halves.astype("<f4").reshape(shape), start + 2 * count
    rows = 1 if len(shape) == 1 else shape[0]
    scale_count = count // rows if tensor["axis"] else rows
    scales = np.frombuffer(payload, "<f4", scale_count, start)
    integers = np.frombuffer(payload, np.int8, count, start + 4 * scale_count)
    by_row = scales[None, :] if tensor["axis"] else scales[:, None]
    values = by_row * integers.reshape(rows, -1).astype("<f4")
    return values.reshape(shape), start + 4 * scale_count + count


def write_adapter(manifest, payload, out):
    """Write the texts, and the tensors as a safetensors file."""
    for name, text in manifest["texts"].items():
        (out / name).write_bytes(text.encode())
    header, data, start = {"__metadata__": {"format": "pt"}}, b"", 0
    for tensor in manifest["tensors"]:
        values, start = dequantize(tensor, payload, start)
        offsets, shape = [len(data), len(data) + values.nbytes], tensor["shape"]
        header[tensor["name"]] = {"dtype": "F32", "shape": shape, "data_offsets": offsets}
        data += values.tobytes()
    text = json.dumps(header, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    (out / "adapter_model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + data)


def write_files(manifest, payload, base, out):
    """Write the files of a patch, each from its zstd frames."""
    import zstandard

    start = 0
    for file in manifest["files"]:
        old = (base / file["base"]).read_bytes() if file["base"] is not None else b""
        parts = [] if file["blocks"] else [old]
        for block in file["blocks"]:
            prefix = old[block["start"] : block["start"] + block["prefix"]]
            kind = zstandard.DICT_TYPE_RAWCONTENT
            words = zstandard.ZstdCompressionDict(prefix, dict_type=kind) if prefix else None
            frame = payload[start : start + block["stored"]]
            parts.append(
                zstandard.ZstdDecompressor(words, max_window_size=1 << 26).decompress(frame)
            )
            start += block["stored"]
        (out / file["name"]).parent.mkdir(parents=True, exist_ok=True)
        (out / file["name"]).write_bytes(b"".join(parts))


if __name__ == "__main__":
    package, base, out = map(Path, sys.argv[1:])
    manifest, payload = read_package(package)
    digest_of(base) == manifest["base"]["digest"] or sys.exit("another base")
    out.mkdir()
    if manifest["tensors"]:
        write_adapter(manifest, payload, out)
    else:
        write_files(manifest, payload, base, out)
    digest_of(out) == manifest["result"]["digest"] or sys.exit("not the announced result")
    print(digest_of(out))
