"""Save ONNX models: metadata, external data beyond a threshold, and a check of what was written."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

import onnx
from onnxscript import ir

from compressor.artifacts.errors_from_os import writing
from compressor.errors import PassError
from compressor.graphs.files import MODEL, PROTOBUF_LIMIT_BYTES

_PREFIX = "autoglm_compress."
_TOOLS = ("torch", "onnx", "onnx-ir", "onnxscript", "onnxsim")
_SMALL_TENSOR_BYTES = 256
"""Smaller tensors stay in the graph, where shape inference reads them."""


def initializer_bytes(model: ir.Model, smallest: int = 0) -> int:
    """Return the bytes of the initializers, those of branches too, from ``smallest`` bytes on."""
    tensors = (
        value.const_value for graph in model.graphs() for value in graph.initializers.values()
    )
    sizes = (tensor.nbytes for tensor in tensors if tensor is not None)
    return sum(size for size in sizes if size >= smallest)


def external_bytes(model: ir.Model) -> int:
    """Return the bytes of the initializers that can lie outside the graph."""
    return initializer_bytes(model, _SMALL_TENSOR_BYTES)


def exceeds_protobuf(model: ir.Model) -> bool:
    """Return True if the weights do not fit into one protobuf message (2 GB)."""
    return initializer_bytes(model) > PROTOBUF_LIMIT_BYTES


def file_metadata(
    artifact_id: str, family: str, class_names: Sequence[str] | None
) -> dict[str, str]:
    """Return the metadata of an exported file: artifact, family, versions of tools, class names."""
    metadata = {
        "artifact_id": artifact_id,
        "family": family,
        "tools": json.dumps({tool: version(tool) for tool in _TOOLS}),
    }
    if class_names is not None:
        metadata["class_names"] = json.dumps(class_names, ensure_ascii=False)
    return {_PREFIX + key: value for key, value in metadata.items()}


def save_model(model: ir.Model, folder: Path, *, external: bool, name: str = MODEL) -> list[str]:
    """Write a graph, with ``external`` its large tensors into ``<name>.data`` beside it.

    Equal graphs give equal bytes.

    Returns:
        The names of the files.

    Raises:
        StorageError: the disk is full, or the folder cannot be written.
    """
    data = f"{name}.data" if external else None
    if not external:  # weights that still lie in the parent's file would be looked for here
        ir.external_data.load_to_model(model)
    with writing(folder):
        ir.save(model, folder / name, external_data=data, size_threshold_bytes=_SMALL_TENSOR_BYTES)
    return [name] if data is None else [name, data]


def save_checked_model(
    model: ir.Model,
    folder: Path,
    metadata: Mapping[str, str],
    external_threshold_bytes: int,
    name: str = MODEL,
) -> bool:
    """Write a graph with metadata, and check it with onnx, full shape inference included.

    Args:
        model: the graph; its metadata is replaced.
        folder: the folder to write to.
        metadata: key to value, written in alphabetical order.
        external_threshold_bytes: weights beyond it go into ``<name>.data``.
        name: the file's name.

    Returns:
        True if the weights were written into a file beside the graph.

    Raises:
        PassError: onnx's checker refuses the graph.
        StorageError: the disk is full, or the folder cannot be written.
    """
    model.metadata_props.clear()
    model.metadata_props.update(sorted(metadata.items()))
    external = external_bytes(model) > min(external_threshold_bytes, PROTOBUF_LIMIT_BYTES)
    save_model(model, folder, external=external, name=name)
    try:
        onnx.checker.check_model(str(folder / name), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise PassError(f"the exported graph is not valid ONNX: {error}") from error
    return external
