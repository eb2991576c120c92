"""Headers of a checkpoint's weight files compared with a class that has no row in the tables."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedModel

from compressor.errors import ModelError
from compressor.models.checkpoint.equal_values import values_are_equal
from compressor.models.checkpoint.stored_tensors import StoredTensors
from compressor.models.checkpoint.weight_files import WeightFiles
from compressor.models.families.transformers.conversion import Conversions
from compressor.models.families.transformers.layouts import TIED_FLAG
from compressor.models.families.transformers.modules import build_on_meta
from compressor.models.families.transformers.stored_names import compare_names
from compressor.models.quantized.packed_checkpoint import PackedTensors
from compressor.models.quantized.weight_grid import is_packed

_NAMED = 4
"""Number of unused tensors that a note names."""


@dataclass(frozen=True, slots=True)
class ClassComparison:
    """Result of comparing stored tensors with a class."""

    tree: Mapping[str, Any]
    """config.json as the weights have it, such as an untied head."""
    problems: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def compare_with_class(tree: Mapping[str, Any], weights: WeightFiles) -> ClassComparison:
    """Compare names and shapes of the stored tensors with the class that config.json names.

    Args:
        tree: config.json.
        weights: the weight files, without problems of their own.
    """
    try:
        module = build_on_meta(tree)
        stored = StoredTensors(weights)
        packed = PackedTensors(stored, tree) if is_packed(tree) else None
        names = stored.entries if packed is None else packed.names
        conversions = Conversions(module, names)
        if packed is None:
            shapes = {name: entry.entry.shape for name, entry in stored.entries.items()}
        else:
            shapes = packed.shapes()
        comparison = compare_names(module, conversions, shapes)
    except ModelError as error:
        remedy = f"; {error.remedy}" if error.remedy else ""
        return ClassComparison(tree, (f"{error.what}{remedy}",))
    untied = _untied_pair(module, conversions, weights)
    if untied is not None and tree.get(TIED_FLAG) is not False:
        # Stored twice with different values: transformers uses both.
        note = f'{untied[0]} and {untied[1]} differ: both are used ("{TIED_FLAG}": false)'
        result = compare_with_class({**tree, TIED_FLAG: False}, weights)
        return ClassComparison(result.tree, result.problems, (note, *result.notes))
    if untied is not None:
        problem = f"{untied[0]} and {untied[1]} differ, although the class ties them"
        return ClassComparison(tree, (*comparison.problems, problem))
    return ClassComparison(tree, comparison.problems, _notes(module, comparison.unused))


def _untied_pair(
    module: PreTrainedModel, conversions: Conversions, weights: WeightFiles
) -> tuple[str, str] | None:
    """Return two tied tensors of the class that are both stored, with different values."""
    for name, source in dict(module.all_tied_weights_keys).items():
        if not {name, source} <= conversions.targets:
            continue
        first, second = conversions.renamed(name), conversions.renamed(source)
        stored = weights.tensors
        both = first in stored and second in stored and first != second
        if both and not values_are_equal(stored[str(first)], stored[str(second)]):
            return name, source
    return None


def _notes(module: PreTrainedModel, unused: tuple[str, ...]) -> tuple[str, ...]:
    if not unused:
        return ()
    more = f" and {len(unused) - _NAMED} more" if len(unused) > _NAMED else ""
    return (
        f"{type(module).__name__} does not use these stored tensors, and results are saved "
        f"without them: {', '.join(unused[:_NAMED])}{more}",
    )
