"""ONNX graphs: stripped of what is not the model, simplified, labelled, written and checked."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

import onnx
from onnxscript import ir

from compressor.errors import PassError
from compressor.graphs.files import MODEL

_PREFIX = "autoglm_compress."
_TOOLS = ("torch", "onnx", "onnx-ir", "onnxscript", "onnxsim")
_PROTOBUF_LIMIT_BYTES = 1_900_000_000  # one message holds 2 GB; the graph needs some of it
_SMALL_TENSOR_BYTES = 256  # stays in the graph: shape inference wants to see it
_SKIPPED = ["fuse_matmul_add_bias_into_gemm_batched"]
"""A product with a bias is two operators; as a matrix, between two Reshape whose sizes are computed, up to six."""
_GROWTH = 1.01
_GROWTH_BYTES = 4096


def weights_bytes(model: ir.Model) -> int:
    """Bytes of the initializers that may lie outside the graph."""
    sizes = (
        one.const_value.nbytes
        for one in model.graph.initializers.values()
        if one.const_value is not None
    )
    return sum(size for size in sizes if size >= _SMALL_TENSOR_BYTES)


def strip(model: ir.Model) -> None:
    """Remove, in place, what an exporter notes of its own run: stack traces, paths, node histories, doc strings."""
    model.doc_string = None
    model.metadata_props.clear()
    for graph in model.graphs():
        graph.doc_string = None
        graph.metadata_props.clear()
        for value in (*graph.inputs, *graph.initializers.values()):
            _strip_value(value)
    for node in model.graph.all_nodes():
        node.doc_string = None
        node.metadata_props.clear()
        for value in node.outputs:
            _strip_value(value)
    for value in model.graph.outputs:
        _strip_value(value)


def _strip_value(value: ir.Value) -> None:
    value.doc_string = None
    value.metadata_props.clear()
    if value.const_value is not None:
        value.const_value.doc_string = None
        value.const_value.metadata_props.clear()


def simplified(model: ir.Model) -> tuple[ir.Model, str]:
    """The model through onnxsim, or as it was; and one line that says which, and why.

    onnxsim unshares tied weights in some graphs; what comes back larger is not taken.
    """
    before = weights_bytes(model)
    if before > _PROTOBUF_LIMIT_BYTES:
        return (
            model,
            f"not simplified: its weights ({before / 1e9:.1f} GB) do not fit into one protobuf message",
        )
    import onnxsim

    proto = ir.to_proto(model)
    try:
        result, sound = onnxsim.simplify(proto, skipped_optimizers=_SKIPPED)
    except (
        RuntimeError,
        ValueError,
        onnx.checker.ValidationError,
        onnx.shape_inference.InferenceError,
    ) as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        return model, f"not simplified: onnxsim cannot ({first})"
    if not sound:
        return model, "not simplified: onnxsim's result does not compute the same"
    old, new = proto.ByteSize(), result.ByteSize()
    if new > _GROWTH * old + _GROWTH_BYTES:
        return model, f"not simplified: onnxsim's result is larger ({old:,} to {new:,} bytes)"
    return (
        ir.from_proto(result),
        f"onnxsim: {len(proto.graph.node)} to {len(result.graph.node)} nodes, {old:,} to {new:,} bytes",
    )


def divide(model: ir.Model) -> None:
    """In place, x · (1 / y) becomes x / y: so RMS norms have the form that ONNX Runtime computes in one operator."""
    for node in list(model.graph):
        for index, one in enumerate(node.inputs if node.op_type == "Mul" else ()):
            inverse = one.producer() if one is not None else None
            if inverse is None or inverse.op_type != "Reciprocal":
                continue
            quotient = ir.node("Div", [node.inputs[1 - index], inverse.inputs[0]])
            old, new = node.outputs[0], quotient.outputs[0]
            new.type, new.shape = old.type, old.shape
            model.graph.insert_before(node, quotient)
            old.replace_all_uses_with(new, replace_graph_outputs=True)
            model.graph.remove(node, safe=True)
            new.name = old.name
            if not inverse.outputs[0].uses():
                model.graph.remove(inverse, safe=True)
            break


def labelled(artifact_id: str, family: str, classes: Sequence[str] | None) -> dict[str, str]:
    """What the file says of itself, for whoever holds it without its manifest."""
    metadata = {
        "artifact_id": artifact_id,
        "family": family,
        "tools": json.dumps({tool: version(tool) for tool in _TOOLS}),
    }
    if classes is not None:
        metadata["class_names"] = json.dumps(classes, ensure_ascii=False)
    return {_PREFIX + key: value for key, value in metadata.items()}


def write(
    model: ir.Model,
    folder: Path,
    metadata: Mapping[str, str],
    external_threshold_bytes: int,
    name: str = MODEL,
) -> bool:
    """Write a graph and check it, full shape inference included; True where the weights went into a file beside it.

    Raises:
        PassError: ONNX's checker refuses the graph.
    """
    model.metadata_props.clear()
    model.metadata_props.update(sorted(metadata.items()))
    external = weights_bytes(model) > min(external_threshold_bytes, _PROTOBUF_LIMIT_BYTES)
    ir.save(
        model,
        folder / name,
        external_data=f"{name}.data" if external else None,
        size_threshold_bytes=_SMALL_TENSOR_BYTES,
    )
    try:
        onnx.checker.check_model(str(folder / name), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise PassError(f"the exported graph is not valid ONNX: {error}") from error
    return external
