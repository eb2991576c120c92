"""Operators of MNN in the place of the nodes that its converter kept (``decoder_graph``)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from passes.export_mnn.decoder_graph import ATTENTION
from passes.export_mnn.decoder_weights import StoredLayer

Operator = dict[str, Any]
_PLAIN = {
    "dilateX": 1,
    "dilateY": 1,
    "strideX": 1,
    "strideY": 1,
    "kernelX": 1,
    "kernelY": 1,
    "padX": 0,
    "padY": 0,
    "group": 1,
    "relu": False,
    "relu6": False,
    "padMode": "CAFFE",
    "hasOutputShape": False,
}
"""A convolution of 1 × 1, which is a matrix product."""


def replace_kept_nodes(net: dict[str, Any], layers: Mapping[str, StoredLayer]) -> None:
    """Replace linear layers and attention of a network in MNN's JSON.

    Args:
        net: the network, which is changed.
        layers: the linear layers by their names.
    """
    operators: list[Operator] = []
    for operator in net["oplists"]:
        if operator["type"] != "Extra":
            operators.append(operator)
            continue
        attributes = {entry["key"]: entry for entry in operator["main"]["attr"]}
        name = attributes["name"]["s"]
        if operator["main"]["type"] == ATTENTION:
            operators.append(_attention(operator, name, attributes["layer_index"].get("i", 0)))
        else:
            operators += _linear(operator, name, layers[name], net["tensorName"], attributes)
    net["oplists"] = operators


def _operator(name: str, kind: str, main_kind: str, main: Operator) -> Operator:
    return {
        "name": name,
        "type": kind,
        "main_type": main_kind,
        "main": main,
        "defaultDimentionFormat": "NHWC",
    }


def _attention(kept: Operator, name: str, layer: int) -> Operator:
    main = {"kv_cache": True, "layer_index": layer, "kv_shared_layer_index": -1}
    operator = _operator(name, "Attention", "AttentionParam", main)
    return {
        **operator,
        "inputIndexes": kept["inputIndexes"],
        "outputIndexes": kept["outputIndexes"],
    }


def _linear(
    kept: Operator,
    name: str,
    layer: StoredLayer,
    tensors: list[str],
    attributes: Mapping[str, Operator],
) -> list[Operator]:
    """Return the convolution, between the conversions to and from its layout."""
    inputs, outputs = attributes["in_features"]["i"], attributes["out_features"]["i"]
    convolution = {
        "common": {**_PLAIN, "inputCount": inputs, "outputCount": outputs},
        "quanParameter": layer.quantization,
        "external": list(layer.external),
    }
    chain = [
        _reshape(f"{name}/rows", [-1, inputs, 1, 1]),
        _conversion(f"{name}/packed", "NCHW", "NC4HW4"),
        _operator(name, "Convolution", "Convolution2D", convolution),
        _conversion(f"{name}/unpacked", "NC4HW4", "NCHW"),
        _reshape(f"{name}/tokens", [1, -1, outputs]),
    ]
    source = kept["inputIndexes"]
    for operator in chain[:-1]:
        operator["inputIndexes"], operator["outputIndexes"] = source, [len(tensors)]
        source = operator["outputIndexes"]
        tensors.append(operator["name"])
    chain[-1]["inputIndexes"], chain[-1]["outputIndexes"] = source, kept["outputIndexes"]
    return chain


def _reshape(name: str, shape: list[int]) -> Operator:
    return _operator(name, "Reshape", "Reshape", {"dims": shape, "dimType": "NCHW"})


def _conversion(name: str, source: str, target: str) -> Operator:
    main = {"source": source, "dest": target}
    return _operator(name, "ConvertTensor", "TensorConvertInfo", main)
