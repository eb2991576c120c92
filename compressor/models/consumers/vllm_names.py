"""Names by which vLLM 0.32 looks up layers in ``quantization_config``, where they differ; no torch.

Of glm4v it looks up the vision tower's ``attn.qkv`` as ``attn.qkv_proj`` in checkpoints of
compressed-tensors: a grid or an ``ignore`` entry for ``attn.qkv`` alone is not found, and loading
fails. Both names may stand in config.json: other readers match those of their own layers.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from compressor.models.quantized.weight_grid import QUANTIZATION_CONFIG

_RENAMING_CLASSES = frozenset({"glm4v", "glm4v_moe"})
_TOWER_QKV = re.compile(r"^(.*\bvisual\..*\.attn\.)qkv$")


def name_in_vllm(name: str, model_type: object) -> str:
    """Return the name under which vLLM looks up a layer; its own where they do not differ."""
    match = _TOWER_QKV.match(name) if model_type in _RENAMING_CLASSES else None
    return name if match is None else f"{match.group(1)}qkv_proj"


def with_vllm_names(quantization: Mapping[str, Any], model_type: object) -> dict[str, Any]:
    """Return a ``quantization_config`` of compressed-tensors with vLLM's names beside others."""

    def both(names: Iterable[str]) -> list[str]:
        return list(
            dict.fromkeys(n for name in names for n in (name, name_in_vllm(name, model_type)))
        )

    groups = {
        key: {**group, "targets": both(group["targets"])}
        for key, group in quantization["config_groups"].items()
    }
    return {**quantization, "config_groups": groups, "ignore": both(quantization["ignore"])}


def lookup_problem(name: str, tree: Mapping[str, Any], *, is_packed: bool) -> str | None:
    """Return why vLLM takes a layer for a float one or for a packed one, wrongly; None if not."""
    alias = name_in_vllm(name, tree.get("model_type"))
    if alias == name:
        return None
    quantization = tree[QUANTIZATION_CONFIG]
    ignored = any(_matches(alias, entry) for entry in quantization.get("ignore", ()))
    targets = [
        target
        for group in quantization.get("config_groups", {}).values()
        for target in group.get("targets", ())
    ]
    found = not ignored and any(_matches(alias, target) for target in targets)
    if found == is_packed:
        return None
    where = "the `targets` of its grid" if is_packed else "`ignore`"
    return (
        f"vLLM looks it up as {alias.rpartition('.')[2]}, which is not in {where}: quantize with "
        "`serve_with: {vllm: …}`, or add the name in config.json"
    )


def _matches(name: str, target: str) -> bool:
    if target.startswith("re:"):
        return re.match(target[3:], name) is not None
    return target in {"Linear", name}
