"""Stored tensors of a checkpoint compared with the tensors of its class."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from transformers import PreTrainedModel

from compressor.models.families.transformers.computed_tensors import computed_tensors
from compressor.models.families.transformers.conversion import Conversions
from compressor.models.families.transformers.headers import is_ignored

_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")


@dataclass(frozen=True, slots=True)
class NameComparison:
    """Differences between stored tensors and those of the class."""

    problems: tuple[str, ...]
    """Tensors that are missing, of another shape, stored twice, or of a layer that the config
    does not count."""
    unused: tuple[str, ...]
    """Stored tensors of parts that the class does not have, such as another head."""


def compare_names(
    module: PreTrainedModel,
    conversions: Conversions,
    shapes: Mapping[str, tuple[int, ...]],
) -> NameComparison:
    """Compare the stored tensors with those of the class, as ``from_pretrained`` assigns them.

    Args:
        module: the class, its parameters on the device ``meta``.
        conversions: the stored tensors in terms of the class.
        shapes: shapes of the stored tensors by their names in the files, those of packed weights
            unpacked.
    """
    state = module.state_dict()
    ties: dict[str, str] = dict(module.all_tied_weights_keys)
    targets = conversions.targets
    tied = {name for pair in ties.items() for name in pair if set(pair) & targets}
    missing = [name for name in state if name not in targets and name not in tied]
    computed = computed_tensors(module, missing)
    problems = [f"missing: {name}" for name in missing if name not in computed]
    patterns = module._keys_to_ignore_on_load_unexpected or ()
    unexpected = [
        name
        for name in conversions.unexpected
        if not is_ignored(name) and not any(re.search(pattern, name) for pattern in patterns)
    ]
    layers = {_NUMBER.sub("*", name) for name in state}
    beyond = [name for name in unexpected if _NUMBER.sub("*", name) in layers]
    problems += [f"unexpected: {name}" for name in beyond]
    problems += conversions.collisions
    problems += [
        f"{name}: {list(shape)} in the file, {list(state[name].shape)} in the model"
        for name, shape in conversions.shapes(shapes).items()
        if shape != tuple(state[name].shape)
    ]
    unused = tuple(name for name in unexpected if name not in beyond)
    return NameComparison(tuple(sorted(problems)), unused)
