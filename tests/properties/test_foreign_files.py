"""For any bytes, a reader of foreign files returns, or raises an error of this project."""

from __future__ import annotations

import contextlib
import json
import random
import struct
from pathlib import Path

import numpy as np
import pytest
import safetensors
from hypothesis import example, given
from hypothesis import settings as limits
from hypothesis import strategies as st
from safetensors.numpy import save

from calibration.sources.array_headers import read_array, read_headers
from calibration.sources.records.reading import read_records, sample_records
from calibration.sources.records.record import ProblemList
from compressor.config.document import parse_document
from compressor.data.pictures import open_picture, without_pillow_warnings
from compressor.errors import CompressError, ConfigError, DataError, ModelError
from compressor.foreign_files.json_files import parse_json
from compressor.foreign_files.printable import printable, printable_json
from compressor.graphs.files import load_typed_model, read_graph
from compressor.models.checkpoint.safetensors_files import read_header
from compressor.models.waveforms import read_waveform
from compressor.runtimes.foreign.identify import identify
from tests.support import mutations
from tests.support.model_files import gguf_header
from tests.support.processors import write_picture
from tests.support.speech import write_wav
from tests.support.tiny_files import tiny_onnx

seeds = st.integers(0, 2**32).map(random.Random)
WEIGHTS = save(
    {
        "a": np.ones((3, 2), np.float32),
        "b": np.ones((2, 2), np.float16),
        "c": np.ones(4, np.int8),
    },
    {"format": "pt"},
)
PIPELINE = Path(__file__).parents[2] / "examples" / "phone" / "pipeline.yaml"
CONFIG = json.dumps({"model_type": "llama", "sizes": [1, 2.5, {"a": None}], "text": "é\n"}).encode()
ROWS = b"".join(json.dumps({"text": f"w{n}", "ids": [n, 2]}).encode() + b"\n" for n in range(6))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("foreign")


def accepted_by_safetensors(content: bytes) -> bool:
    try:
        safetensors.deserialize(content)
    except safetensors.SafetensorError:
        return False
    return True


@limits(max_examples=300)
@given(seeds)
def test_a_header_that_is_accepted_is_one_that_safetensors_accepts(folder, rng):
    file = folder / "model.safetensors"
    content = mutations.mutated_safetensors(WEIGHTS, rng)
    file.write_bytes(content)
    try:
        entries = read_header(file)
    except ModelError:
        return
    assert accepted_by_safetensors(content)
    assert {entry.name for entry in entries} == {
        name for name, _ in safetensors.deserialize(content)
    }


def test_an_ordinary_header_is_accepted(folder):
    (folder / "good.safetensors").write_bytes(WEIGHTS)
    assert [entry.name for entry in read_header(folder / "good.safetensors")] == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        (
            '{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},'
            '"b":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}',
            "overlaps",
        ),
        ('{"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}', "gap"),
        ('{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,8]}}', "does not have 8 bytes"),
        ('{"a":{"dtype":"F32","shape":[-1,-2],"data_offsets":[0,8]}}', "lists of sizes"),
        ('{"a":{"dtype":"F32","shape":[2],"data_offsets":[8,0]}}', "bytes"),
        ('{"a":{"dtype":"F31","shape":[2],"data_offsets":[0,8]}}', "unknown dtype"),
        (
            '{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},'
            '"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}',
            "twice",
        ),
        ('{"a":{"dtype":"F32","shape":[1152921504606846976],"data_offsets":[0,8]}}', "bytes"),
        ("[1]", "no object"),
        ('{"__metadata__":{"a":1}}', "__metadata__"),
    ],
)
def test_headers_that_lie_are_refused_with_the_reason(tmp_path, header, reason):
    file = tmp_path / "model.safetensors"
    file.write_bytes(struct.pack("<Q", len(header)) + header.encode() + bytes(8))
    with pytest.raises(ModelError, match=reason):
        read_header(file)


@limits(max_examples=150)
@given(seeds)
def test_any_yaml_is_parsed_or_refused(rng):
    with contextlib.suppress(ConfigError):
        parse_document(mutations.mutated_yaml(PIPELINE.read_bytes(), rng))


@limits(max_examples=200)
@given(seeds | st.binary())
@example(b"[" * 100_000)
@example(b'{"a":' * 5000 + b"1" + b"}" * 5000)
@example(b'{"a": 1e999}')
@example(b'{"a": ' + b"9" * 5000 + b"}")
@example(b'["\\ud800"]')
@example(b"[" + b"[]," * 2_100_000 + b"1]")
@example("[1]".encode("utf-16"))
def test_any_json_is_parsed_or_refused(source):
    content = source if isinstance(source, bytes) else mutations.mutated_json(CONFIG, source)
    try:
        value = parse_json(content, "config.json", ModelError, "copy it again")
    except ModelError as error:
        assert error.what.startswith("config.json") and error.remedy
    else:
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode()


def test_json_with_a_byte_order_mark_is_read():
    assert parse_json(b"\xef\xbb\xbf" + CONFIG, "x", ModelError, None) == json.loads(CONFIG)


@limits(max_examples=150)
@given(seeds, st.sampled_from(("x.jsonl", "x.json", "x.csv", "x.parquet")), st.booleans())
def test_any_records_are_read_or_refused(folder, rng, name, sample):
    content = {"x.json": b"[" + b",".join(ROWS.split()) + b"]", "x.csv": b'a,b\n1,"x"\n'}
    (folder / name).write_bytes(
        mutations.mutated_lines(content.get(name, ROWS), rng)
        if name == "x.jsonl"
        else mutations.mutated_bytes(content.get(name, ROWS), rng)
    )
    with contextlib.suppress(CompressError):
        list((sample_records if sample else read_records)(folder / name, ProblemList()))


@limits(max_examples=120)
@given(seeds)
def test_any_onnx_file_is_read_or_refused(folder, rng):
    (folder / "model.onnx").write_bytes(mutations.mutated_bytes(tiny_onnx(), rng))
    try:
        read_graph(folder)
        load_typed_model(folder)
    except ModelError:
        pass


@limits(max_examples=60)
@given(seeds, st.sampled_from(("png", "jpg", "gif", "bmp", "tiff", "webp")))
def test_any_picture_is_decoded_or_refused(folder, rng, kind):
    original = folder / f"original.{kind}"
    if not original.exists():
        write_picture(original, 16, 12)
    (folder / f"x.{kind}").write_bytes(mutations.mutated_bytes(original.read_bytes(), rng))
    try:
        with without_pillow_warnings():
            open_picture(folder / f"x.{kind}")
    except DataError:
        pass


@limits(max_examples=100)
@given(seeds)
def test_any_recording_is_read_or_refused(folder, rng):
    original = folder / "original.wav"
    if not original.exists():
        write_wav(original, 0.05)
    (folder / "x.wav").write_bytes(mutations.mutated_bytes(original.read_bytes(), rng))
    try:
        waveform = read_waveform(folder / "x.wav")
    except DataError:
        return
    assert np.isfinite(waveform.samples_N).all()


@limits(max_examples=100)
@given(seeds)
def test_any_arrays_are_read_or_refused(folder, rng):
    original = folder / "original.npz"
    if not original.exists():
        np.savez(original, x=np.ones((4, 3), np.float32), y=np.arange(4))
    (folder / "x.npz").write_bytes(mutations.mutated_bytes(original.read_bytes(), rng))
    try:
        for array in read_headers(folder / "x.npz").values():
            read_array(array)
    except DataError:
        pass


@limits(max_examples=100)
@given(seeds)
def test_any_gguf_header_is_described_or_refused(folder, rng):
    (folder / "x.gguf").write_bytes(mutations.mutated_bytes(gguf_header(), rng))
    found = identify(folder / "x.gguf")
    try:
        if found is not None:
            found.describe()
    except ModelError:
        pass


@given(st.text() | st.binary().map(lambda data: data.decode(errors="surrogateescape")))
@example("\x1b[31m\x9b2J\x07\r\u202e\udcff")
def test_printable_text_holds_no_control_and_can_be_encoded(text):
    shown = printable(text)
    assert not any(ord(character) < 32 and character not in "\t\n" for character in shown)
    assert not set(shown) & {"\x7f", "\x9b", "\u202e", "\u2066"}
    shown.encode()
    assert json.loads(printable_json(json.dumps(text, ensure_ascii=False))) == text
