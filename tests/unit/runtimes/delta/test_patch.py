"""Patches find what is equal in large files, also where it has moved."""

import io

import numpy as np
import pytest

from compressor.runtimes.delta.patch import decode_block, encode_file


def test_a_large_file_that_moved_and_changed_a_little_is_a_small_patch(tmp_path):
    # Random bytes compress to nothing less, and 10 MB exceed the tables of zstd's usual levels.
    old = np.random.default_rng(0).bytes(10 << 20)
    new = b"\0" * 100_001 + old[: 4 << 20] + b"changed" + old[4 << 20 :]
    (tmp_path / "old").write_bytes(old)
    (tmp_path / "new").write_bytes(new)
    payload = io.BytesIO()
    record = encode_file("w", tmp_path / "new", {"w": tmp_path / "old"}, payload)
    assert len(payload.getvalue()) < 10_000
    frames, content = io.BytesIO(payload.getvalue()), b""
    for block in record.blocks:
        content += decode_block(block, frames.read(block.stored), tmp_path / "old")
    assert content == new
    (tmp_path / "old").write_bytes(old[: 1 << 20])
    with pytest.raises(ValueError, match="bytes that the base does not have"):
        decode_block(record.blocks[0], payload.getvalue(), tmp_path / "old")
