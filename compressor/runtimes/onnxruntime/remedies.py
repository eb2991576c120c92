"""Remedies for errors that ONNX Runtime raises itself, by the kinds of its messages."""

from __future__ import annotations

import re

_SOURCE = re.compile(r"/onnxruntime_src/.*\) ")
"""Place in ONNX Runtime's sources, with the signature of the function."""
_CHECK = (
    "the file is not a valid graph: `onnx.checker.check_model(path, full_check=True)` says where; "
    "export it again"
)
_SHAPES = (
    "feed the sizes that the graph was made for: `show` lists its inputs; an axis that the "
    "exporter fixed has to be declared dynamic when the model is exported"
)
_REMEDIES: tuple[tuple[str, str], ...] = (
    (
        "is not a registered function/op",
        "operators of other domains need a library that is not loaded: export the model without "
        "them, or cut the graph before them (`onnx.utils.extract_model`)",
    ),
    (
        "No Op registered for",
        "export the model with an opset that has the operator, or for an operator of your own, cut "
        "the graph before it (`onnx.utils.extract_model`)",
    ),
    (
        "Could not find an implementation",
        "ONNX Runtime computes this operator on CPUs in other types only: export the model in "
        "float32, or with another opset",
    ),
    ("Unsupported model IR version", "export the model with an older IR version, or update onnx"),
    ("is under development", "export the model with an opset that ONNX Runtime supports"),
    ("protobuf parsing failed", "the file is damaged or truncated: copy or save it again"),
    ("Got invalid dimensions", _SHAPES),
    ("Invalid rank for input", _SHAPES),
    (
        "Unexpected input data type",
        "save the samples in the types that `show` lists",
    ),
    (
        "out of data bounds",
        "samples hold an index beyond a table of the graph: use samples that were made for this "
        "model, such as tokens of its own tokenizer",
    ),
    ("Non-zero status code", _SHAPES),
    (
        "two nodes with same node name",
        "give the nodes other names, or none: `for node in model.graph.node: node.name = ''` "
        "before `onnx.save`",
    ),
    ("ShapeInferenceError", _CHECK),
    ("TypeInferenceError", _CHECK),
    ("Type Error", _CHECK),
    ("invalid model", _CHECK),
    ("Invalid model", _CHECK),
)
"""Part of a message, and the remedy; the first that fits."""


def remedy_of(error: Exception) -> str | None:
    """Return what a user can do about an error of ONNX Runtime; None if that is not known."""
    text = str(error)
    return next((remedy for part, remedy in _REMEDIES if part in text), None)


def first_line(error: Exception) -> str:
    """Return the first line of an exception's message, or its type's name if it has none.

    Places in ONNX Runtime's sources are left out.
    """
    line = (str(error).strip() or type(error).__name__).splitlines()[0]
    return _SOURCE.sub("", line)
