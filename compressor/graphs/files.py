"""ONNX folders read as files: the graph without its data, and a check of where that data lies.

An ONNX file may name other files to read tensors from. One that names ``/etc/passwd``, ``../secret`` or a link would make the
runtime read what the artifact does not contain; such a file is refused before any runtime opens it (compare CVE-2024-27318,
CVE-2024-5187).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath, PureWindowsPath

import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from compressor.artifacts.errors_from_os import reading
from compressor.errors import ModelError

MODEL = "model.onnx"


def read_graph(path: Path) -> onnx.ModelProto:
    """The graph of ``path/model.onnx``, or of an .onnx file; external data is checked, not loaded.

    Raises:
        ModelError: there is no model.onnx, it is no ONNX, or external data is absolute, outside the folder, a link, missing
            or too short: every offender is named.
    """
    file = path if path.suffix == ".onnx" else path / MODEL
    if not file.is_file():
        raise ModelError(
            f"{file} is missing",
            remedy="an ONNX model directory holds model.onnx, and its data beside it",
        )
    try:
        with reading(file):
            model = onnx.load(str(file), load_external_data=False)
    except DecodeError as error:
        raise ModelError(f"{file} is not an ONNX model, or is truncated: {error}") from error
    if not model.HasField("graph") or not model.opset_import:
        raise ModelError(f"{file} is not an ONNX model: it has no graph")
    problems = list(dict.fromkeys(_problems(model, file.parent)))
    if problems:
        raise ModelError(
            f"{file} has external data that is not read:\n"
            + "\n".join(f"    {problem}" for problem in problems),
            remedy="save the model with its data in plain files beside model.onnx",
        )
    return model


def external_files(model: onnx.ModelProto) -> set[str]:
    """Locations of a graph's external data, relative to its folder."""
    return {
        _entries(tensor).get("location", "") for tensor in tensors_of(model) if _is_external(tensor)
    }


def tensors_of(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Every tensor of a model: initializers, sparse ones and attributes, in subgraphs and functions too."""
    yield from _in_graph(model.graph)
    for function in model.functions:
        for node in function.node:
            yield from _in_node(node)


def _in_graph(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    for node in graph.node:
        yield from _in_node(node)


def _in_node(node: onnx.NodeProto) -> Iterator[onnx.TensorProto]:
    for attribute in node.attribute:
        if attribute.HasField("t"):
            yield attribute.t
        yield from attribute.tensors
        for sparse in (attribute.sparse_tensor, *attribute.sparse_tensors):
            yield from (sparse.values, sparse.indices)
        for graph in ([attribute.g] if attribute.HasField("g") else []) + list(attribute.graphs):
            yield from _in_graph(graph)


def _is_external(tensor: onnx.TensorProto) -> bool:
    return bool(tensor.data_location == onnx.TensorProto.EXTERNAL)


def _entries(tensor: onnx.TensorProto) -> dict[str, str]:
    return {entry.key: entry.value for entry in tensor.external_data}


def _problems(model: onnx.ModelProto, folder: Path) -> Iterator[str]:
    for tensor in tensors_of(model):
        if _is_external(tensor) and (problem := _problem(_entries(tensor), folder)):
            yield f"{tensor.name or 'a tensor'}: {problem}"


def _problem(entries: dict[str, str], folder: Path) -> str | None:
    location = entries.get("location", "")
    path = PurePosixPath(location)
    if not location:
        return "names no file"
    if path.is_absolute() or PureWindowsPath(location).drive or "\\" in location:
        return f"{location!r} is absolute"
    if ".." in path.parts:
        return f"{location!r} is outside the model's folder"
    file = folder / path
    if any(
        (folder / part).is_symlink() for part in (path, *path.parents) if part != PurePosixPath()
    ):
        return f"{location!r} is a symbolic link"
    if not file.is_file():
        return f"{location!r} is missing"
    try:
        end = int(entries.get("offset", "0")) + int(entries.get("length", "0"))
    except ValueError:
        return f"{location!r}: its offset or length is not a number"
    if end > (size := file.stat().st_size):
        return f"{location!r} is truncated: {size} bytes, {end} expected"
    if file.stat().st_nlink > 1:
        return f"{location!r} is a hard link, which onnx and ONNX Runtime refuse"
    return None
