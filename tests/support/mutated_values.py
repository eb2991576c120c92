"""Valid documents, weights, graphs and data with other values: they pass every parser.

``mutations`` damages structure and bytes, which most readers refuse at once. These changes reach
what comes after: checks of configs against weights, plans, passes and libraries.
"""

from __future__ import annotations

import csv
import io
import json
import random
import wave
from collections.abc import Callable
from typing import Any

import numpy as np
import yaml

_NUMBERS: tuple[Any, ...] = (0, 1, 2, 3, 7, 16, 33, 64, 255, 1000, 65537, 2**31 - 1, 0.0, 0.5, 1e-9)
_EDGES = (float("nan"), float("inf"), -float("inf"), 0.0, 3e38, -1e-40)
_TEXTS = ("", " ", "w5", "é" * 40, "w7 " * 400, "\u202ew5", "w5\x85\x9b31m", "<|image|>", "{{ x }}")


def changed_tree(tree: Any, rng: random.Random) -> Any:
    """Return a copy of a tree of which one to three values are others of the same type."""
    root = json.loads(json.dumps(tree))
    for _ in range(rng.choice((1, 1, 2, 3))):
        places = list(_places(root))
        if places:
            _change(*rng.choice(places), places, rng)
    return root


def _change(owner: Any, key: Any, places: list[tuple[Any, Any]], rng: random.Random) -> None:
    value = owner[key]
    alike = [other for o, k in places if type(other := o[k]) is type(value) and other != value]
    match rng.randrange(6):
        case 0 if alike:
            owner[key] = json.loads(json.dumps(rng.choice(alike)))
        case 1 if isinstance(owner, list):
            owner.insert(key, json.loads(json.dumps(value)))
        case 1:
            del owner[key]
        case 2 if isinstance(owner, list):
            rng.shuffle(owner)
        case 3 if isinstance(value, dict) and value:
            _rename(value, rng)
        case _:
            owner[key] = _other(value, rng)


def _rename(value: dict[str, Any], rng: random.Random) -> None:
    name = rng.choice(sorted(value))
    value[rng.choice((name + "s", name.upper(), name[:-1] or "a", "type", "path"))] = value.pop(
        name
    )


def _other(value: Any, rng: random.Random) -> Any:
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return rng.choice((*_NUMBERS[:11], value + 1, value - 1, value * 2, value // 2, -value))
    if isinstance(value, float):
        return rng.choice((*_NUMBERS, -value, value * 10, value / 10))
    if isinstance(value, str):
        return rng.choice((value + "-x", value.upper(), value[: len(value) // 2], "../" + value))
    if isinstance(value, list):
        return value[: len(value) // 2] if rng.random() < 0.5 else value * 2
    if isinstance(value, dict):
        return dict(list(value.items())[: len(value) // 2])
    return rng.choice((0, "x", False))


def _places(value: Any) -> Any:
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, child in list(items):
        yield value, key
        if isinstance(child, dict | list):
            yield from _places(child)


def changed_json(content: bytes, rng: random.Random) -> bytes:
    """Return JSON with other values of the same types."""
    return json.dumps(changed_tree(json.loads(content), rng)).encode()


def changed_yaml(content: bytes, rng: random.Random) -> bytes:
    """Return YAML with other values of the same types."""
    tree = changed_tree(yaml.safe_load(content), rng)
    return yaml.safe_dump(tree, sort_keys=False).encode()


def changed_lines(content: bytes, rng: random.Random) -> bytes:
    """Return JSON Lines of which one record has other values, is repeated, missing or empty."""
    lines = content.splitlines()
    place = rng.randrange(len(lines))
    match rng.randrange(6):
        case 0:
            lines[place] = _text_of_a_record(lines[place], rng)
        case 1:
            del lines[place]
        case 2:
            lines = [lines[place]]
        case _:
            lines[place] = changed_json(lines[place], rng)
    return b"\n".join(lines) + b"\n"


def _text_of_a_record(line: bytes, rng: random.Random) -> bytes:
    record = json.loads(line)
    texts = [(owner, key) for owner, key in _places(record) if isinstance(owner[key], str)]
    if texts:
        owner, key = rng.choice(texts)
        owner[key] = rng.choice(_TEXTS)
    return json.dumps(record).encode()


def changed_text(content: bytes, rng: random.Random) -> bytes:
    """Return text of which one line is another text."""
    lines = content.decode().split("\n")
    lines[rng.randrange(len(lines))] = rng.choice(_TEXTS)
    return "\n".join(lines).encode()


def changed_csv(content: bytes, rng: random.Random) -> bytes:
    """Return a table of which a row, a column or a cell is another one."""
    rows = list(csv.reader(io.StringIO(content.decode())))
    row = rng.choice(rows)
    match rng.randrange(5):
        case 0:
            row.append("w5")
        case 1:
            row.pop()
        case 2:
            rows[0] = rows[0][::-1]
        case 3:
            rows[0] = [rows[0][0]] * len(rows[0])
        case _:
            row[rng.randrange(len(row))] = rng.choice((*_TEXTS, "1", "-1", "1.5", "NaN"))
    text = io.StringIO()
    csv.writer(text).writerows(rows)
    return text.getvalue().encode()


def changed_parquet(content: bytes, rng: random.Random) -> bytes:
    """Return a table of which a column has other values, another type, or another name."""
    import pyarrow
    from pyarrow import parquet

    table = parquet.read_table(io.BytesIO(content))
    place = rng.randrange(table.num_columns)
    name, rows = table.column_names[place], table.num_rows
    columns: dict[str, Any] = {
        "nulls": pyarrow.nulls(rows),
        "bytes": pyarrow.array([b"\xff\x00"] * rows),
        "lists": pyarrow.array([[1, None]] * rows),
        "objects": pyarrow.array([{"a": 1}] * rows),
        "floats": pyarrow.array([float("nan")] * rows),
        "large": pyarrow.array([2**63 - 1] * rows),
        "times": pyarrow.array([0] * rows, pyarrow.timestamp("ns")),
        "codes": pyarrow.array(["w5"] * rows).dictionary_encode(),
        "texts": pyarrow.array([rng.choice(_TEXTS)] * rows),
    }
    match rng.randrange(5):
        case 0:
            table = table.rename_columns([f"x{index}" for index in range(table.num_columns)])
        case 1:
            table = table.slice(0, 0)
        case 2:
            table = table.drop_columns([name])
        case _:
            table = table.set_column(place, name, columns[rng.choice(sorted(columns))])
    buffer = io.BytesIO()
    parquet.write_table(table, buffer)
    return buffer.getvalue()


def changed_arrays(content: bytes, rng: random.Random) -> bytes:
    """Return an archive of arrays of which one has another shape, type, name or other values."""
    arrays = dict(np.load(io.BytesIO(content)))
    name = rng.choice(sorted(arrays))
    value = arrays[name]
    match rng.randrange(8):
        case 0:
            arrays[name] = value.astype(
                rng.choice(("f2", "f8", "i1", "i8", "?", "c8", "U3", "M8[s]"))
            )
        case 1:
            arrays[name] = value[: len(value) // 2]
        case 2:
            arrays[name] = value[..., None]
        case 3:
            arrays[name + "2"] = arrays.pop(name)
        case 4:
            arrays[name] = np.array(3.0, np.float32)
        case 5:
            arrays[name] = np.full_like(
                value, rng.choice(_EDGES) if value.dtype.kind == "f" else 77
            )
        case 6:
            arrays[name] = np.asfortranarray(value).byteswap().view(value.dtype.newbyteorder())
        case _:
            arrays[name] = value[:0]
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def changed_wave(content: bytes, rng: random.Random) -> bytes:
    """Return a recording with another rate, width, number of channels, or length."""
    with wave.open(io.BytesIO(content)) as stream:
        frames = stream.readframes(stream.getnframes())
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as stream:
        stream.setnchannels(rng.choice((1, 2, 3, 64)))
        stream.setsampwidth(rng.choice((1, 2, 3, 4)))
        stream.setframerate(rng.choice((1, 7, 8000, 44100, 2**31 - 1)))
        length = rng.choice((0, 12, 768, len(frames) // 768 * 768, len(frames) // 768 * 76800))
        stream.writeframes((frames * 100)[:length])
    return buffer.getvalue()


def changed_picture(content: bytes, rng: random.Random) -> bytes:
    """Return a picture of another size, mode or format."""
    from PIL import Image

    picture = Image.open(io.BytesIO(content)).convert("RGB")
    picture = picture.resize(rng.choice(((1, 1), (1, 900), (900, 1), (5, 3), (2000, 2000))))
    modes = {
        "PNG": ("1", "L", "LA", "P", "RGBA", "I", "I;16", "RGB"),
        "JPEG": ("L", "CMYK", "RGB"),
        "TIFF": ("F", "LAB", "CMYK", "I", "RGB"),
        "GIF": ("P", "L"),
        "WEBP": ("RGBA", "RGB"),
        "BMP": ("1", "P", "RGB"),
    }
    format_name = rng.choice(sorted(modes))
    mode = rng.choice(modes[format_name])
    if mode == "LAB":
        picture = Image.new("LAB", picture.size)
    elif mode == "I;16":
        picture = picture.convert("I").convert("I;16")
    else:
        picture = picture.convert(mode)
    exif = Image.Exif()
    exif[0x0112] = rng.choice((1, 3, 6, 8, 99))
    buffer = io.BytesIO()
    options = {"exif": exif} if format_name in {"PNG", "JPEG", "WEBP"} else {}
    if format_name == "GIF" and rng.random() < 0.5:
        options = {"save_all": True, "append_images": [picture] * 3}
    picture.save(buffer, format_name, **options)
    return buffer.getvalue()


def changed_safetensors(content: bytes, rng: random.Random) -> bytes:
    """Return valid weights of which one to three tensors are others, or have other names."""
    import safetensors.torch
    import torch

    tensors = safetensors.torch.load(content)
    for _ in range(rng.choice((1, 1, 3))):
        name = rng.choice(sorted(tensors))
        value = tensors[name]
        match rng.randrange(7):
            case 0 if len(tensors) > 1:
                del tensors[name]
            case 1:
                tensors[name + "_"] = tensors.pop(name)
            case 2:
                other = rng.choice((torch.float16, torch.float64, torch.int8, torch.bool))
                tensors[name] = value.to(other)
            case 3:
                tensors[name] = value.reshape(-1)
            case 4:
                tensors[name] = torch.cat([value, value]) if value.ndim else value.reshape(1)
            case 5 if value.is_floating_point():
                tensors[name] = torch.full_like(value, rng.choice(_EDGES))
            case _:
                tensors[name] = value[:1] if value.ndim else value.reshape(1, 1)
    contiguous = {name: value.contiguous().clone() for name, value in tensors.items()}
    return safetensors.torch.save(contiguous, {"format": "pt"})


def changed_onnx(content: bytes, rng: random.Random) -> bytes:
    """Return a graph with another operator, attribute, type, shape, name, constant or version."""
    import onnx

    model = onnx.load_model_from_string(content)
    graph = model.graph
    node = rng.choice(graph.node)
    match rng.randrange(12):
        case 0:
            node.op_type = rng.choice(
                ("Relu", "Loop", "If", "Unknown", rng.choice(graph.node).op_type)
            )
        case 1:
            graph.node.remove(node)
        case 2 if node.input:
            node.input[rng.randrange(len(node.input))] = rng.choice(("", "nothing", *node.output))
        case 3 if node.attribute:
            _change_attribute(rng.choice(node.attribute), rng)
        case 4 if graph.initializer:
            tensor = rng.choice(graph.initializer)
            tensor.dims[:] = rng.choice(([], [0], [2**40], [-1], [*tensor.dims, 2]))
        case 5 if graph.initializer:
            rng.choice(graph.initializer).data_type = rng.choice((0, 1, 6, 7, 9, 10, 21, 999))
        case 6 if graph.initializer:
            _change_external_data(rng.choice(graph.initializer), rng)
        case 7:
            tensor_type = rng.choice((*graph.input, *graph.output)).type.tensor_type
            tensor_type.elem_type = rng.choice((0, 1, 6, 7, 9, 10))
        case 8:
            tensor_type = rng.choice((*graph.input, *graph.output)).type.tensor_type
            del tensor_type.shape.dim[:]
        case 9:
            model.opset_import[0].version = rng.choice((1, 7, 13, 99, 2**40))
        case 10:
            graph.node.append(graph.node[0])
        case _:
            rng.choice((*graph.input, *graph.output)).name = rng.choice(("", "x", "a\x1bb"))
    return model.SerializeToString()


def _change_attribute(attribute: Any, rng: random.Random) -> None:
    if attribute.ints:
        attribute.ints[:] = rng.choice(([], [0], [-1], [2**40], list(attribute.ints) * 2))
    elif attribute.s:
        attribute.s = rng.choice((b"", b"x", b"\xff"))
    else:
        attribute.i = rng.choice((-1, 0, 1, 7, 2**40))


def _change_external_data(tensor: Any, rng: random.Random) -> None:
    for entry in tensor.external_data:
        if entry.key == "location":
            entry.value = rng.choice((entry.value, "../../etc/passwd", "/dev/zero", "", "m"))
        else:
            entry.value = rng.choice((entry.value, "-1", "0", "x", str(2**50)))


CHANGES: dict[str, Callable[[bytes, random.Random], bytes]] = {
    ".json": changed_json,
    ".yaml": changed_yaml,
    ".jsonl": changed_lines,
    ".txt": changed_text,
    ".csv": changed_csv,
    ".parquet": changed_parquet,
    ".npz": changed_arrays,
    ".wav": changed_wave,
    ".png": changed_picture,
    ".jpg": changed_picture,
    ".safetensors": changed_safetensors,
    ".onnx": changed_onnx,
}
"""Changes of values by the suffix of a file."""
