"""Requests of random shape for ``/v1/predict`` and ``/v1/embeddings``, around those that are right.

A request starts from arrays that fit the model's inputs; most then get one or more faults.
"""

from __future__ import annotations

import base64
import io
import json
import random
import struct
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from PIL import Image
from safetensors.numpy import save

from tests.support.request_fuzz import FuzzedRequest, broken_json, change_somewhere

JSON, SAFETENSORS = "application/json", "application/vnd.safetensors"
PREDICT, EMBEDDINGS = "/v1/predict", "/v1/embeddings"
Inputs = Mapping[str, Mapping[str, Any]]
"""Dtype and shape of each input, as ``/v1/models`` states them."""
_DTYPES = ("?", "i1", "u1", "<i2", "<i4", "<i8", ">i8", "<u8", "<f2", "<f4", ">f4", "<f8", "<f16")
_OTHER_DTYPES = ("<c8", "<U4", "S3", "<M8[s]", "<m8[s]", "V3")
_JUNK: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 0.5, 1e308, -(10**30), "", "x", "\u0000", "é🙂", "NaN", "1"),
    *([], {}, [[]], [[], []], [None], [[1], [1, 2]], [["1"]], [[True, 2.5]], [10**30], [[1e308]]),
    *([{}], {"npy": 5}, {"npy": ""}, {"npy": None, "image_url": None}, {"image_url": []}, {"a": 1}),
)


def random_prediction(generator: random.Random, inputs: Inputs) -> FuzzedRequest:
    """Return a request for predictions: arrays that fit, with some faults."""
    arrays = _fitting_arrays(generator, inputs)
    if generator.random() < 0.2:
        return FuzzedRequest(PREDICT, _safetensors(generator, arrays), _headers(SAFETENSORS))
    values: dict[str, Any] = {name: _encoded(generator, a) for name, a in arrays.items()}
    for _ in range(generator.choice((0, 1, 1, 2))):
        generator.choice(_INPUT_FAULTS)(generator, values)
    body: dict[str, Any] = {"inputs": values}
    if generator.random() < 0.3:
        body["encoding"] = generator.choice(("json", "npy", "x", 5, None))
    if generator.random() < 0.2:
        body["outputs"] = generator.choice(([], ["logits"], ["x"], "x", [5], None, {}))
    return _sent(PREDICT, body, generator)


def random_embedding(generator: random.Random) -> FuzzedRequest:
    """Return a request for embeddings: texts or tokens that fit, or not."""
    words = " ".join(f"w{generator.randrange(600)}" for _ in range(generator.randint(0, 80)))
    token = generator.choice((5, 7, 0, -1, 511, 512, 10**6, 1 << 40, 1 << 70, 2.5, True, "w7"))
    text = generator.choice((words, "", "\u0000", "é🙂\ufffd", " " * 900, "w7 " * 900))
    value = generator.choice(
        (
            *(words, text, [words, text], [text] * generator.randint(0, 40), [text] * 2049),
            *([token] * generator.randint(0, 90), [5, token], [[5, token], [7]], [[], [5]]),
            *([words, [5]], [[[5]]], None, 5, {}, [None]),
        )
    )
    body: dict[str, Any] = {"input": value}
    if generator.random() < 0.4:
        body["encoding_format"] = generator.choice(("float", "base64", "hex", 5, None))
    if generator.random() < 0.3:
        body["dimensions"] = generator.choice((1, 0, -1, 32, 64, 10**30, "64", None, 2.5))
    return _sent(EMBEDDINGS, body, generator)


def _sent(route: str, body: dict[str, Any], generator: random.Random) -> FuzzedRequest:
    if generator.random() < 0.15:
        change_somewhere(body, generator)
    content, headers = json.dumps(body).encode(), _headers(JSON)
    kind = generator.random()
    if kind < 0.08:
        content = broken_json(content, generator)
    elif kind < 0.1:
        headers = _headers(generator.choice(("text/plain", SAFETENSORS, "", "application/x-npy")))
    return FuzzedRequest(route, content, headers)


def _headers(content_type: str) -> dict[str, str]:
    return {"content-type": content_type}


def _fitting_arrays(generator: random.Random, inputs: Inputs) -> dict[str, np.ndarray]:
    """Return an array for each input, with sizes of one choice for each name."""
    sizes: dict[str, int] = {}
    arrays = {}
    for name, spec in inputs.items():
        shape = [
            sizes.setdefault(size, generator.randint(1, 4)) if isinstance(size, str) else size
            for size in spec["shape"]
        ]
        count = int(np.prod(shape))
        values = np.array([generator.randrange(2) for _ in range(min(count, 64))])
        arrays[name] = np.resize(values, shape).astype(spec["dtype"])
    return arrays


def _encoded(generator: random.Random, array: np.ndarray) -> Any:
    """Return an array as lists or .npy; large ones always as the latter."""
    return array.tolist() if array.size < 5000 and generator.random() < 0.5 else npy(array)


def npy(array: np.ndarray) -> dict[str, str]:
    """Return an array as an input of ``/v1/predict``."""
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=True)
    return {"npy": base64.b64encode(stream.getvalue()).decode()}


def _safetensors(generator: random.Random, arrays: dict[str, np.ndarray]) -> bytes:
    """Return a .safetensors file, often a broken one."""
    content = save({name: np.ascontiguousarray(array) for name, array in arrays.items()})
    header = struct.unpack("<Q", content[:8])[0]
    edited = content[8 : 8 + header]
    replaced = {
        "dtype": edited.replace(b'"dtype":"', b'"dtype":"B', 1),
        "shape": edited.replace(b'"shape":[', b'"shape":[99999999999,', 1),
        "negative": edited.replace(b'"shape":[', b'"shape":[-1,', 1),
        "offsets": edited.replace(b"offsets", b"offsetz", 1),
        "name": edited.replace(b'{"', b'{"z', 1),
        "json": edited[:-1],
    }
    choices: list[bytes] = [
        *[content] * 3,
        content[: generator.randrange(len(content) + 1)],
        struct.pack("<Q", generator.choice((0, 1, 1 << 31, 1 << 63))) + content[8:],
        content + bytes(generator.randint(1, 9)),
        bytes(generator.choices(range(256), k=generator.randint(0, 90))),
        *(struct.pack("<Q", len(e)) + e + content[8 + header :] for e in replaced.values()),
    ]
    return generator.choice(choices)


def _set_any(generator: random.Random, values: dict[str, Any], value: Any) -> None:
    """Set one of the inputs, or one that the model lacks."""
    names = [*values, generator.choice(("zzz", "", "x" * 300, "input_ids"))]
    values[generator.choice(names)] = value


def _junk(generator: random.Random, values: dict[str, Any]) -> None:
    _set_any(generator, values, json.loads(json.dumps(generator.choice(_JUNK))))


def _deep(generator: random.Random, values: dict[str, Any]) -> None:
    value: Any = 1
    for _ in range(generator.choice((2, 33, 70, 150, 190))):
        value = [value]
    _set_any(generator, values, value)


def _ragged(generator: random.Random, values: dict[str, Any]) -> None:
    rows = [[1] * generator.randint(0, 4) for _ in range(generator.randint(0, 5))]
    _set_any(generator, values, generator.choice((rows, [rows, rows[:1]], [rows, 1], [[rows]])))


def _other_dtype(generator: random.Random, values: dict[str, Any]) -> None:
    shape = [generator.randint(0, 3) for _ in range(generator.randint(0, 5))]
    dtype = np.dtype(generator.choice(_DTYPES + _OTHER_DTYPES))
    _set_any(generator, values, npy(np.zeros(shape, dtype, order=generator.choice("CF"))))


def _special_values(generator: random.Random, values: dict[str, Any]) -> None:
    special = generator.choice((np.nan, np.inf, -np.inf, 1e300, -1e300, 0.5, -1.0, 3e9, 1e19))
    shape = generator.choice(((1, 3), (2, 3), (1, 5), (1, 3, 8, 8), ()))
    with np.errstate(over="ignore"):
        array = np.full(shape, special, generator.choice(("f4", "f8")))
    _set_any(generator, values, npy(array))


def _object_array(generator: random.Random, values: dict[str, Any]) -> None:
    _set_any(generator, values, npy(np.array([{"a": 1}, None], object)))


def _broken_npy(generator: random.Random, values: dict[str, Any]) -> None:
    """Set a .npy file whose header is wrong, or states more than the file holds."""
    shape = generator.choice(("(1, 3)", "(999999999999,)", "(-1, 3)", "(1 << 60, 4)", "(True,)"))
    descr = generator.choice(("'<f4'", "'|O'", "'<f4', 'x'", "[('a', '<f4')]", "5", "'<f4"))
    text = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}"
    header = generator.choice((text, text[:-5], "{" * 300, "[" * 5000, "__import__('os')", ""))
    length = len(header) + generator.choice((0, 0, 0, 7, -3))
    version = generator.choice((b"\x01\x00", b"\x02\x00", b"\x03\x00", b"\x09\x00"))
    form = "<H" if version == b"\x01\x00" else "<I"
    content = b"\x93NUMPY" + version + struct.pack(form, max(0, length)) + header.encode()
    content += bytes(generator.choice((0, 11, 12, 13)))
    text = base64.b64encode(content).decode()
    junk = (text, text[:-1], text + "=", "@" + text, "é", "=" * 8, "A" * generator.randint(1, 40))
    _set_any(generator, values, {"npy": generator.choice(junk)})


def _image(generator: random.Random, values: dict[str, Any]) -> None:
    content = generator.choice(_PICTURES)(generator)
    if generator.random() < 0.2:
        content = content[: generator.randrange(len(content) + 1)]
    kind = generator.choice(("image/png", "image/gif", "text/html", "", "image/svg+xml"))
    url = f"data:{kind};base64,{base64.b64encode(content).decode()}"
    value: dict[str, Any] = {"image_url": generator.choice((url, url, url, url[:-3], "http://a/b"))}
    for name in ("mean", "std"):
        if generator.random() < 0.5:
            junk = ([0.5] * 3, [0.5], [], [0, 0, 0], [1e308] * 3, [1e-320] * 3, "x", [None] * 3)
            value[name] = generator.choice(junk)
    _set_any(generator, values, value)


def _missing(generator: random.Random, values: dict[str, Any]) -> None:
    if values:
        del values[generator.choice([*values])]


_INPUT_FAULTS: tuple[Callable[[random.Random, dict[str, Any]], None], ...] = (
    *(_junk, _deep, _ragged, _other_dtype, _special_values, _object_array, _broken_npy),
    *(_image, _image, _missing),
)


def _picture(generator: random.Random) -> bytes:
    """Return a picture of some mode and format."""
    mode, form = generator.choice(
        (
            *(("RGB", "PNG"), ("L", "PNG"), ("RGBA", "PNG"), ("P", "GIF"), ("1", "PNG")),
            *(("I;16", "PNG"), ("CMYK", "JPEG"), ("RGB", "WEBP"), ("RGB", "BMP"), ("F", "TIFF")),
        )
    )
    stream = io.BytesIO()
    size = generator.choice(((1, 1), (8, 8), (300, 2), (1, 900)))
    Image.new(mode, size).save(stream, form)
    return stream.getvalue()


def _png_bomb(generator: random.Random) -> bytes:
    """Return a small PNG file that states an enormous size."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    side = generator.choice((6_000, 60_000, 2_000_000_000))
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    text = chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(30_000_000), 9))
    parts = chunk(b"IDAT", zlib.compress(bytes(99))) + chunk(b"IEND", b"")
    middle = text if generator.random() < 0.2 else b""
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + middle + parts


def _gif_bomb(generator: random.Random) -> bytes:
    """Return the header of a GIF file of the largest size."""
    size = generator.choice((5_000, 65_535))
    frame = b"\x2c" + struct.pack("<HHHHB", 0, 0, size, size, 0) + b"\x08\x01\x00\x00\x3b"
    return b"GIF89a" + struct.pack("<HHBBB", size, size, 0x80, 0, 0) + bytes(6) + frame


def _tiff_bomb(generator: random.Random) -> bytes:
    """Return a TIFF file that states many samples, or a size that overflows."""
    side = generator.choice((40_000, 1 << 31, (1 << 32) - 1))
    tags = [(256, side), (257, side), (258, 8), (259, 1), (262, 1), (273, 8), (277, 1), (279, 10)]
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    return b"II*\0" + struct.pack("<I", 8) + struct.pack("<H", len(tags)) + entries + bytes(4)


def _svg(_: random.Random) -> bytes:
    return b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>'


def _empty(_: random.Random) -> bytes:
    return b""


_PICTURES: tuple[Callable[[random.Random], bytes], ...] = (
    *(_picture, _picture, _png_bomb, _gif_bomb, _tiff_bomb, _svg, _empty),
)
