"""Names of a checkpoint's tensors in its class, for reading them one by one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from compressor.models.checkpoint.weight_files import WeightFiles
from compressor.models.families.transformers.headers import canonical_names
from compressor.models.families.transformers.layouts import is_tabulated


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
