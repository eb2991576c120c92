"""Errors of torch's ONNX exporter as one line of what failed, and what to do."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from compressor.errors import PassError

_FIXED = re.compile(r"static shape of (\d+) for dimension [^\n]*?\[(\d+)\]\.shape\[(\d+)\]")
"""Size, input and dimension that torch.export found to be fixed by the module's code."""
_SUMMARY = "## Exception summary"
_CALL = "The following call raised this error:"
_FRAME = re.compile(r"File \"(?:<[^>]*>)?([^\"]*)\", line (\d+)")
"""Frame of the model's code; the text before the name of an own file is of no use."""
_READS_VALUES = re.compile(r"data-dependent|DataDependent|aten\._local_scalar_dense")
_LIBRARY = re.compile(r"[/\\](?:site|dist)-packages[/\\]")
"""Part of the paths of installed libraries, whose code is not the user's."""
_CLASS = re.compile(r"^<class '[\w.]*?(\w+)'>: *")


def export_error(
    error: Exception, inputs: Sequence[str], dynamic: Sequence[Mapping[int, Any]]
) -> PassError:
    """Return the error for a module that torch cannot export.

    Args:
        error: the exporter's error.
        inputs: names of the graph's inputs.
        dynamic: variable dimensions of each input, by their index.
    """
    fixed = {
        (inputs[int(number)], str(dynamic[int(number)].get(int(axis), axis)), size)
        for size, number, axis in _FIXED.findall(str(error))
        if int(number) < len(inputs)
    }
    if not fixed:
        return _untraceable(str(error))
    names = sorted({name for _, name, _ in fixed})
    others = sorted({str(name) for axes in dynamic for name in axes.values()} - {*names})
    places = ", ".join(f"{name} of {tensor} to {size}" for tensor, name, size in sorted(fixed))
    return PassError(
        f"the module's code fixes dimensions that vary: {places}; recurrent layers and loops over "
        "a dimension do",
        remedy=f"export it for that size: `dynamic: [{', '.join(others)}]`",
    )


def _untraceable(text: str) -> PassError:
    """Return the error for code that cannot be traced, with its place where torch names one."""
    place, reads_values = _place(text), _READS_VALUES.search(text) is not None
    remedy = "rewrite what it names in the module's `forward`"
    if reads_values and _LIBRARY.search(place):
        remedy = (
            "a graph cannot branch on the values of tensors, as this class of a library does: "
            "measure and ship the torch artifact, or take another class"
        )
    elif reads_values:
        remedy = (
            "a graph cannot branch on the values of tensors: write `torch.where(condition, a, b)` "
            "in place of `if`, or `torch.cond`"
        )
    if not place:
        remedy += "; `torch.export.export(module, (), inputs)` shows the place"
    return PassError(f"torch.export cannot trace the model{place}: {_summary(text)}", remedy=remedy)


def _place(text: str) -> str:
    """Return the innermost line of the model's code that torch names; empty without one."""
    quoted = text.partition(_CALL)[2].strip().partition("\n\n")[0]
    frames = _FRAME.findall(quoted)
    return f" at {frames[-1][0]}, line {frames[-1][1]}" if frames else ""


def _summary(text: str) -> str:
    """Return the first line of the exception that the exporter quotes."""
    lines = [line for line in text.partition(_SUMMARY)[2].splitlines() if line.strip()]
    first = lines[0] if lines else text.splitlines()[0]
    return _CLASS.sub(lambda match: f"{match[1]}: ", first)
