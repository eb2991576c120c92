"""ONNX models on disk: read graphs, and check which files their external data names.

An ONNX file may name other files to read tensors from. One that names ``/etc/passwd``,
``../secret`` or a link would make the runtime read what the artifact does not contain. Such a file
is refused before any runtime opens it (compare CVE-2024-27318, CVE-2024-5187).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import TYPE_CHECKING

import onnx

from compressor.errors import ModelError
from compressor.foreign_files.libraries import library_errors
from compressor.foreign_files.limits import GRAPH
from compressor.foreign_files.opening import check_file
from compressor.graphs.external_data import check_structure

if TYPE_CHECKING:
    from onnxscript import ir

MODEL = "model.onnx"
_REMEDY = "copy or save it again"
_LONGEST_NUMBERS = 30
"""Digits of an offset and a length together."""
_BITS: Mapping[int, int] = {
    **dict.fromkeys((onnx.TensorProto.DOUBLE, onnx.TensorProto.INT64, onnx.TensorProto.UINT64), 64),
    **dict.fromkeys((onnx.TensorProto.FLOAT, onnx.TensorProto.INT32, onnx.TensorProto.UINT32), 32),
    **dict.fromkeys((onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16), 16),
    **dict.fromkeys((onnx.TensorProto.INT16, onnx.TensorProto.UINT16), 16),
    **dict.fromkeys((onnx.TensorProto.INT8, onnx.TensorProto.UINT8, onnx.TensorProto.BOOL), 8),
    **dict.fromkeys((onnx.TensorProto.INT4, onnx.TensorProto.UINT4), 4),
}
"""Bits of a value of each dtype."""
PROTOBUF_LIMIT_BYTES = 1_900_000_000
"""Largest weights in one protobuf message, which holds 2 GB; the graph itself needs the rest."""


def read_graph(path: Path) -> onnx.ModelProto:
    """Read ``path/model.onnx``, or an .onnx file, without its external data.

    Raises:
        ModelError: model.onnx is missing or not an ONNX model; or its external data is absolute,
            outside the folder, a link, missing or too short. The message names every offender.
    """
    file = path if path.suffix == ".onnx" else path / MODEL
    if not file.exists() and not file.is_symlink():
        raise ModelError(
            f"{file} is missing",
            remedy="an ONNX model directory holds model.onnx, and its data beside it",
        )
    check_file(file, ModelError, GRAPH)
    check_structure(file)
    with library_errors(f"{file} is not an ONNX model, or is truncated", ModelError, _REMEDY):
        model = onnx.load(str(file), load_external_data=False)
    if not model.HasField("graph") or not model.opset_import:
        raise ModelError(f"{file} is not an ONNX model: it has no graph")
    problems = list(dict.fromkeys(_external_data_problems(model, file.parent)))
    if problems:
        raise ModelError(
            f"{file} has external data that cannot be read safely:\n"
            + "\n".join(f"    {problem}" for problem in problems),
            remedy="save the model with its data in plain files beside model.onnx",
        )
    _shorten_domain(model)
    return model


def _shorten_domain(model: onnx.ModelProto) -> None:
    """Write the domain of ONNX's own operators as "" where a file has its long form, in place."""
    functions = [node for function in model.functions for node in function.node]
    imports = [*model.opset_import, *(i for f in model.functions for i in f.opset_import)]
    for entry in (*imports, *_nodes(model.graph), *functions):
        if entry.domain == "ai.onnx":
            entry.domain = ""


def _nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """Yield the nodes of a graph, and those of its subgraphs."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for inner in (*([attribute.g] if attribute.HasField("g") else ()), *attribute.graphs):
                yield from _nodes(inner)


def load_typed_model(folder: Path) -> ir.Model:
    """Load an ONNX model with its weights and with the inferred type of every value.

    Functions are written out. Constant nodes become initializers. External data beyond 2 GB stays
    in its file.

    Raises:
        ModelError: as ``read_graph``; or the graph has parts that onnx-ir does not read.
    """
    proto = read_graph(folder)
    for what, remedy in unreadable_parts(proto):
        raise ModelError(f"{folder}: {what}", remedy=remedy)
    proto = inline_functions(proto)
    folder = folder.parent if folder.suffix == ".onnx" else folder
    with library_errors(f"{folder} holds an ONNX model that is not valid", ModelError, _REMEDY):
        files = external_files(proto)
        if files and sum((folder / name).stat().st_size for name in files) <= PROTOBUF_LIMIT_BYTES:
            # Shape inference reads constants such as the shapes of Reshape.
            onnx.load_external_data_for_model(proto, str(folder))
        return typed_model(proto, folder)


def inline_functions(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a model in which the functions that it defines are written out."""
    if not model.functions:
        return model
    from onnx.inliner import inline_local_functions

    inlined: onnx.ModelProto = inline_local_functions(model)
    return inlined


def unreadable_parts(model: onnx.ModelProto) -> Iterator[tuple[str, str]]:
    """Yield (problem, remedy) of what onnx-ir does not read.

    It is outputs with maps, sparse tensors, and constants that share a name, of which ONNX Runtime
    may take another one.
    """
    for value in model.graph.output:
        if _has_maps(value.type):
            yield (
                f"the output {value.name} holds maps, which are not converted",
                "export the model with `options={'zipmap': False}` (skl2onnx, onnxmltools), or cut "
                "the graph before ZipMap (`onnx.utils.extract_model`)",
            )
    sparse = len(model.graph.sparse_initializer) + sum(
        attribute.HasField("sparse_tensor")
        for node in model.graph.node
        for attribute in node.attribute
    )
    if sparse:
        yield (
            f"the graph holds {sparse} sparse tensors, which are not converted",
            "store them as dense tensors (`onnx.numpy_helper.from_array`)",
        )
    names = Counter(tensor.name for tensor in model.graph.initializer)
    if shared := [name for name, count in names.items() if count > 1]:
        yield (
            f"constants share a name, which ONNX does not allow: {', '.join(shared)}",
            "delete those that are not meant from `model.graph.initializer`, and `onnx.save` it",
        )


def _has_maps(kind: onnx.TypeProto) -> bool:
    inner = {"sequence_type", "optional_type"} & {kind.WhichOneof("value")}
    return kind.HasField("map_type") or any(
        _has_maps(getattr(kind, field).elem_type) for field in inner
    )


def typed_model(proto: onnx.ModelProto, folder: Path | None = None) -> ir.Model:
    """Return a model with the inferred type of every value, and constants as initializers.

    Args:
        proto: the model.
        folder: the folder of its external data, if it has any.
    """
    from onnx_ir.passes.common import LiftConstantsToInitializersPass
    from onnxscript import ir

    model = ir.from_proto(onnx.shape_inference.infer_shapes(proto, data_prop=True))
    LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    if folder is not None and external_files(proto):
        ir.external_data.set_base_dir(model.graph, folder)
    return model


def external_files(model: onnx.ModelProto) -> set[str]:
    """Return the locations of a model's external data, relative to its folder."""
    return {
        _external_entries(tensor).get("location", "")
        for tensor in tensors_of(model)
        if _is_external(tensor)
    }


def tensors_of(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Yield every tensor: initializers and attributes, of subgraphs and functions too."""
    yield from _graph_tensors(model.graph)
    for function in model.functions:
        for node in function.node:
            yield from _node_tensors(node)


def _graph_tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    for node in graph.node:
        yield from _node_tensors(node)


def _node_tensors(node: onnx.NodeProto) -> Iterator[onnx.TensorProto]:
    for attribute in node.attribute:
        if attribute.HasField("t"):
            yield attribute.t
        yield from attribute.tensors
        for sparse in (attribute.sparse_tensor, *attribute.sparse_tensors):
            yield from (sparse.values, sparse.indices)
        for graph in ([attribute.g] if attribute.HasField("g") else []) + list(attribute.graphs):
            yield from _graph_tensors(graph)


def _is_external(tensor: onnx.TensorProto) -> bool:
    return bool(tensor.data_location == onnx.TensorProto.EXTERNAL)


def _external_entries(tensor: onnx.TensorProto) -> dict[str, str]:
    return {entry.key: entry.value for entry in tensor.external_data}


def _external_data_problems(model: onnx.ModelProto, folder: Path) -> Iterator[str]:
    for tensor in tensors_of(model):
        if not _is_external(tensor):
            continue
        if problem := _location_problem(tensor, folder):
            yield f"{tensor.name or 'a tensor'}: {problem}"


def _location_problem(tensor: onnx.TensorProto, folder: Path) -> str | None:
    """Return why the file of one tensor must not be read, or None if it may be."""
    entries = _external_entries(tensor)
    location = entries.get("location", "")
    path = PurePosixPath(location)
    if not location:
        return "names no file"
    if path.is_absolute() or PureWindowsPath(location).drive or "\\" in location:
        return f"{location!r} is absolute"
    if ".." in path.parts:
        return f"{location!r} is outside the model's folder"
    file = folder / path
    parents = [parent for parent in path.parents if parent != PurePosixPath()]
    try:
        if any((folder / part).is_symlink() for part in (path, *parents)):
            return f"{location!r} is a symbolic link"
        if not file.is_file():
            return f"{location!r} is missing"
        status = file.stat()
    except OSError as error:
        return f"{location!r} cannot be read: {error.strerror}"
    if problem := _range_problem(entries, tensor, status.st_size):
        return f"{location!r}{problem}"
    if status.st_nlink > 1:
        return f"{location!r} is a hard link, which onnx and ONNX Runtime refuse"
    return None


def _range_problem(entries: dict[str, str], tensor: onnx.TensorProto, size: int) -> str | None:
    """Return what is wrong with the part of a file that holds a tensor."""
    offset, length = entries.get("offset", "0"), entries.get("length", "0")
    if not all(number.isascii() and number.isdigit() for number in (offset, length)):
        return ": its offset or length is not a number"
    if len(offset + length) > _LONGEST_NUMBERS:
        return ": its offset or length is too large"
    if (end := int(offset) + int(length)) > size:
        return f" is truncated: {size} bytes, {end} expected"
    needed = _bytes_of(tensor)
    held = int(length) or size - int(offset)
    if needed is not None and needed != held and ("length" in entries or needed > held):
        return f" holds {held} bytes for it, {needed} expected"
    return None


def _bytes_of(tensor: onnx.TensorProto) -> int | None:
    """Return the bytes that dtype and shape need; None for a dtype that is not known here."""
    bits = _BITS.get(tensor.data_type)
    if bits is None or any(size < 0 for size in tensor.dims):
        return None
    return (math.prod(map(int, tensor.dims)) * bits + 7) // 8
