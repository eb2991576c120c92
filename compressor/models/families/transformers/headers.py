"""Headers of a checkpoint's weight files compared with its config.json; no torch.

Names follow the rules of transformers' loader: the prefix of the base model may be missing or
superfluous, and buffers of old versions are ignored. Tied weights follow its rule too: equal ones
are tied, different ones are not, whatever config.json states.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from compressor.models.checkpoint.equal_values import values_are_equal
from compressor.models.checkpoint.weight_files import WeightFiles
from compressor.models.families.transformers.expected_tensors import Shapes, expected_shapes
from compressor.models.families.transformers.layouts import LM_HEAD, TIED_FLAG, decoder_shape
from compressor.models.families.transformers.packed_headers import (
    PACKED_SUFFIXES,
    packed_layers,
    packing_problems,
)
from compressor.models.quantized.weight_grid import is_packed

_BASE_PREFIX = "model"
"""Name of the base model in the classes with a head; checkpoints of the base model lack it."""
_IGNORED = re.compile(r"(^|\.)rotary(_pos)?_emb\.(\w+_)?inv_freq$")
"""Buffers that old versions of transformers stored, and that are computed today."""
_NESTED_MODEL = re.compile(r"^(model\.language_model\.model|language_model\.model\.model)")
"""Prefix that early versions of the vision-language classes wrote."""
_FLOATS = ("F64", "F32", "F16", "BF16")


@dataclass(frozen=True, slots=True)
class HeaderComparison:
    """Stored tensors by the names that the class gives them, and what does not fit."""

    stored_names: Mapping[str, str]
    """Name in the class to the name in the files; parts of packed weights are included."""
    tied: bool
    """True if the head has the embedding's weight: as config.json states, and in fact."""
    problems: tuple[str, ...]
    notes: tuple[str, ...]


def is_ignored(name: str) -> bool:
    """Return True for a stored buffer that the classes compute themselves."""
    return _IGNORED.search(name) is not None


def canonical_names(
    tree: Mapping[str, Any], stored: Mapping[str, Any]
) -> tuple[dict[str, str], list[str]]:
    """Return the names of the class with those in the files, and the names that collide.

    Args:
        tree: config.json.
        stored: the names in the files.
    """
    expected = expected_shapes({**tree, TIED_FLAG: False})
    names: dict[str, str] = {}
    collisions = []
    for stored_name in sorted(stored):
        if is_ignored(stored_name):
            continue
        name = _canonical(stored_name, expected)
        if name in names:
            collisions.append(f"{names[name]} and {stored_name} both stand for {name}")
        names[name] = stored_name
    embedding, head = _tied_names(tree)
    if decoder_shape(tree).tied and embedding not in names and head in names:
        names[embedding] = names.pop(head)  # either of the two may be stored
    return names, collisions


def compare_headers(tree: Mapping[str, Any], weights: WeightFiles) -> HeaderComparison:
    """Compare names and shapes of the stored tensors with the architecture.

    Args:
        tree: config.json.
        weights: the weight files, without problems of their own.
    """
    names, problems = canonical_names(tree, weights.tensors)
    claims_tie = decoder_shape(tree).tied
    embedding, head = _tied_names(tree)
    notes: tuple[str, ...] = ()
    tied = claims_tie
    if claims_tie and embedding in names and head in names:
        tensors = (weights.tensors[names[embedding]], weights.tensors[names[head]])
        tied = values_are_equal(*tensors)
        if not tied:
            notes = (
                f"{embedding} and {head} differ, although config.json ties them "
                f'("{TIED_FLAG}"): both are used, as transformers does',
            )
    expected = expected_shapes({**tree, TIED_FLAG: tied})
    if tied:
        names.pop(head, None)
    found = {name: weights.tensors[stored].entry.shape for name, stored in names.items()}
    if is_packed(tree):
        layers = packed_layers(found)
        problems += packing_problems(tree, layers, expected)
        # The weight of a packed layer is that of the model, if its tensors fit.
        found = {name: v for name, v in found.items() if not PACKED_SUFFIXES.search(name)}
        found |= {name: expected.get(name, ()) for name in (f"{layer}.weight" for layer in layers)}
    problems += _differences(expected, found)
    problems += _wrong_dtypes(expected, names, weights)
    is_double = any(tensor.entry.dtype == "F64" for tensor in weights.tensors.values())
    if is_double and not (tree.get("dtype") or tree.get("torch_dtype")):
        problems.append(
            "weights are stored as float64, and config.json names no dtype to read them in; set "
            '"dtype": "float32" in config.json'
        )
    if not claims_tie and head not in found and embedding in found:
        problems.append(
            f'{head} is in no file; if the head shares the embedding, set "{TIED_FLAG}": true in '
            "config.json"
        )
        problems = [problem for problem in problems if problem != f"missing: {head}"]
    return HeaderComparison(names, tied, tuple(problems), notes)


def _canonical(name: str, expected: Shapes) -> str:
    """Return the name that the class gives a stored tensor; packed suffixes are kept."""
    name = _NESTED_MODEL.sub("model.language_model", name)
    weight = PACKED_SUFFIXES.sub(".weight", name)
    prefix = f"{_BASE_PREFIX}."
    if weight.startswith(prefix) and weight.removeprefix(prefix) in expected:
        return name.removeprefix(prefix)
    return prefix + name if prefix + weight in expected else name


def _tied_names(tree: Mapping[str, Any]) -> tuple[str, str]:
    return f"{decoder_shape(tree).layout.root}.embed_tokens.weight", f"{LM_HEAD}.weight"


def _differences(expected: Shapes, found: Shapes) -> Iterator[str]:
    yield from (f"missing: {name}" for name in expected if name not in found)
    for name, shape in found.items():
        if name not in expected:
            yield f"unexpected: {name}"
        elif shape != expected[name]:
            yield f"{name}: {list(shape)} in the file, {list(expected[name])} in the model"


def _wrong_dtypes(
    expected: Shapes, names: Mapping[str, str], weights: WeightFiles
) -> Iterator[str]:
    """Yield a line for each weight that is not stored in a float dtype."""
    for name, stored in names.items():
        dtype = weights.tensors[stored].entry.dtype
        if name in expected and dtype not in _FLOATS:
            yield f"{name}: stored as {dtype}; expected {', '.join(_FLOATS)}"
