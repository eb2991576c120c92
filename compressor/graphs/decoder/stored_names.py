"""Names of a checkpoint's tensors in its class, for reading them one by one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from compressor.models.checkpoint.stored_tensors import StoredTensors
from compressor.models.checkpoint.weight_files import WeightFiles
from compressor.models.families.transformers.headers import canonical_names
from compressor.models.families.transformers.layouts import is_tabulated
from compressor.models.quantized.weight_grid import is_packed


def stored_names(tree: Mapping[str, Any], weights: WeightFiles) -> dict[str, str]:
    """Return the name in the files of each tensor, by its name in the class.

    Tensors that transformers merges or splits while it loads them are left out. Of tied tensors,
    each has the name of the one that is stored. Parts of packed weights keep their names.

    Args:
        tree: config.json.
        weights: the weight files.
    """
    if is_tabulated(tree):
        return canonical_names(tree, weights.tensors)[0]
    from compressor.models.families.transformers.conversion import Conversions
    from compressor.models.families.transformers.modules import build_on_meta

    module = build_on_meta(tree)
    conversions = Conversions(module, weights.tensors)
    names = {name: name for name in weights.tensors}
    renamed = {name: conversions.renamed(name) for name in conversions.targets}
    names |= {name: stored for name, stored in renamed.items() if stored is not None}
    for name, source in dict(module.all_tied_weights_keys).items():
        if source not in names and name in names:
            names[source] = names[name]
    return names


def stored_experts(tree: Mapping[str, Any], files: StoredTensors) -> dict[str, str]:
    """Return the linear layers of single experts in the files, by their names in the split class.

    Args:
        tree: config.json of a class with experts.
        files: the stored tensors.
    """
    from compressor.models.families.transformers.conversion import Conversions
    from compressor.models.families.transformers.experts.split import (
        named_experts,
        split_experts,
    )
    from compressor.models.families.transformers.file_names import FileNames
    from compressor.models.families.transformers.modules import build_on_meta
    from compressor.models.quantized.packed_checkpoint import PackedTensors

    module = build_on_meta(tree)
    shapes = {name: entry.entry.shape for name, entry in files.entries.items()}
    if is_packed(tree):
        shapes = PackedTensors(files, tree).shapes()
    conversions = Conversions(module, shapes)
    split_experts(module)
    names = FileNames(module, conversions, shapes)
    layers = (
        f"{prefix}{part}".removesuffix(".weight")
        for prefix, experts in named_experts(module)
        for part in experts.expert_layout.part_names()
        if part.endswith(".weight")
    )
    stored = {layer: names.parts(f"{layer}.weight")[0].name for layer in layers}
    return {layer: name.removesuffix(".weight") for layer, name in stored.items() if name in shapes}


def converted_tensor(tree: Mapping[str, Any], files: StoredTensors, name: str) -> Tensor:
    """Return a tensor of the class that transformers makes of several stored ones.

    Args:
        tree: config.json.
        files: the stored tensors.
        name: in the class.
    """
    from compressor.models.families.transformers.conversion import Conversions
    from compressor.models.families.transformers.modules import build_on_meta

    conversions = Conversions(build_on_meta(tree), files.entries)
    return dict(conversions.convert([name], files.read))[name]
