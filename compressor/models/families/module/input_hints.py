"""Shapes and types of inputs, as annotations and docstrings of ``forward`` state them."""

from __future__ import annotations

import re
from dataclasses import dataclass

from compressor.models.families.module.config import BATCH
from compressor.models.families.module.outline import Parameter

_DTYPES = {
    "long": "int64",
    "int": "int32",
    "short": "int16",
    "double": "float64",
    "float": "float32",
    "half": "float16",
    "bool": "bool",
    "byte": "uint8",
    **{
        name: name
        for name in ("int64", "int32", "int16", "int8", "uint8", "float64", "float32", "float16")
    },
}
_TYPED_TENSOR = re.compile(r"(?:^|\.)(Long|Int|Short|Double|Float|Half|Bool|Byte)Tensor$")
_JAXTYPING = re.compile(
    r"^(?:\w+\.)?(Float|Float64|Float32|Float16|Int|Int64|Int32|Int16|Int8|UInt8|Bool|Shaped|Num)"
    r"\[\s*(?:torch\.)?Tensor\s*,\s*['\"]([^'\"]*)['\"]\s*\]$"
)
_GENERAL = {"Int": "int64", "Shaped": None, "Num": None}
"""Types of jaxtyping that have several widths: the one that torch makes by default."""
_SIZES = re.compile(r"[\[(]\s*(\w+(?:\s*(?:,|\bx\b|×)\s*\w+)*)\s*,?\s*[\])]")
_BATCHES = {"batch", "b", "n", "bs", "batch_size", "batchsize", "samples", "1"}
"""Usual names of the first dimension."""
_WORD = re.compile(r"\w+")


@dataclass(frozen=True, slots=True)
class InputHint:
    """One input, as far as it is stated."""

    name: str
    shape: tuple[int | str, ...] | None = None
    """Sizes, and names of those that vary, from the batch on; None if they are not stated."""
    dtype: str | None = None


def input_hint(parameter: Parameter, docstring: str) -> InputHint:
    """Return what the annotation of a parameter, or else its line in a docstring, states.

    Read are ``Float[Tensor, "batch 3 height width"]`` and ``LongTensor``, and lines such as
    ``tokens: token ids, int64 [batch, length]`` or ``x (Tensor): (N, 3, 224, 224)``.
    """
    text = parameter.annotation.strip()
    if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"" and "[" not in text:
        text = text[1:-1]
    if match := _JAXTYPING.match(text):
        kind, sizes = match.groups()
        dtype = _GENERAL[kind] if kind in _GENERAL else _DTYPES[kind.lower()]
        return InputHint(parameter.name, _shape(sizes.split()), dtype)
    match = _TYPED_TENSOR.search(text)
    typed = None if match is None else _DTYPES[match[1].lower()]
    line = _line(parameter.name, docstring)
    words = (_DTYPES.get(word) for word in _WORD.findall(line) if word[-1].isdigit())
    stated = next((word for word in words if word), None)
    places = (_shape(re.split(r"\s*(?:,|\bx\b|×)\s*", sizes)) for sizes in _SIZES.findall(line))
    shape = next((place for place in places if place is not None), None)
    return InputHint(parameter.name, shape, typed or stated)


def _line(name: str, docstring: str) -> str:
    """Return the line that documents a parameter, without its name."""
    match = re.search(
        rf"^\s*[-*`]*{re.escape(name)}`*\s*(?::|\(|-|–)(.*)$", docstring, re.MULTILINE
    )
    if match is None:
        return ""
    return match[0][match.start(1) - match.start() - 1 :]


def _shape(sizes: list[str]) -> tuple[int | str, ...] | None:
    """Return a shape whose first dimension is the batch; None for sizes that are no names."""
    named = [size for size in sizes if size.isidentifier() or size.isdigit()]
    if not sizes or len(named) != len(sizes) or sizes[0].lower() not in _BATCHES:
        return None
    rest = [int(size) if size.isdigit() else size for size in sizes[1:]]
    return None if 0 in rest or BATCH in rest else (BATCH, *rest)
