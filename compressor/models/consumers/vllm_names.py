"""Names by which vLLM 0.32 looks up layers in ``quantization_config``, where they differ; no torch.

In the vision tower of glm4v it looks up ``gate_proj`` and ``up_proj`` as ``gate_up_proj``, and in
checkpoints of compressed-tensors ``attn.qkv`` as ``attn.qkv_proj`` and ``lm_head`` below
``language_model``. Of any class, ``Linear`` does not stand for the head. An entry for the names of
the files alone is not found, and loading fails. All names may stand in config.json: other readers
match those of their own layers.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from compressor.models.quantized.weight_grid import QUANTIZATION_CONFIG

_RENAMING_CLASSES = frozenset({"glm4v", "glm4v_moe"})
_TOWER = re.compile(r"^(?:.*\.)?visual\.")
_COMPRESSED_TENSORS = "compressed-tensors"
_HEAD = "lm_head"
_ANY_LINEAR = "Linear"


def name_in_vllm(name: str, model_type: object, method: str) -> str:
    """Return the name under which vLLM looks up a layer; its own where they do not differ."""
    if model_type in _RENAMING_CLASSES and name == _HEAD and method == _COMPRESSED_TENSORS:
        return f"language_model.{name}"
    if model_type not in _RENAMING_CLASSES or not _TOWER.match(name):
        return name
    if method == _COMPRESSED_TENSORS and name.endswith(".attn.qkv"):
        return f"{name}_proj"
    return re.sub(r"\.(gate|up)_proj$", ".gate_up_proj", name)


def has_other_names(model_type: object) -> bool:
    """Return True for classes that vLLM loads only with names of its own in config.json."""
    return model_type in _RENAMING_CLASSES


def with_vllm_names(
    quantization: Mapping[str, Any], model_type: object, packed: Collection[str]
) -> dict[str, Any]:
    """Return a ``quantization_config`` with vLLM's names beside those of the files.

    Args:
        quantization: as ``PackingScheme.config`` returns it.
        model_type: of config.json.
        packed: names of the packed layers.
    """
    method = quantization["quant_method"]

    def both(names: Iterable[str]) -> list[str]:
        pairs = ((name, name_in_vllm(name, model_type, method)) for name in names)
        return list(dict.fromkeys(name for pair in pairs for name in pair))

    field = _ignoring_field(method)
    fields = {**quantization, field: both(quantization[field])}
    if method == _COMPRESSED_TENSORS:
        fields["config_groups"] = {
            key: {**group, "targets": both([*group["targets"], *_head(group["targets"], packed)])}
            for key, group in quantization["config_groups"].items()
        }
    return fields


def lookup_problem(
    name: str, tree: Mapping[str, Any], method: str, *, is_packed: bool
) -> str | None:
    """Return why vLLM takes a packed layer for a float one, or a float one for a packed one."""
    alias = name_in_vllm(name, tree.get("model_type"), method)
    is_head = name == _HEAD and method == _COMPRESSED_TENSORS
    if alias == name and not (is_head and is_packed):
        return None
    quantization = tree[QUANTIZATION_CONFIG]
    ignored = quantization.get(_ignoring_field(method)) or ()
    if method == _COMPRESSED_TENSORS:
        groups = quantization.get("config_groups", {}).values()
        targets = [target for group in groups for target in group.get("targets", ())]
        is_ignored = any(_matches(alias, entry) for entry in ignored)
        if is_head:
            targets = [target for target in targets if target != _ANY_LINEAR]
        found = not is_ignored and any(_matches(alias, target) for target in targets)
    else:
        found = not any(entry in alias for entry in ignored)
    if found == is_packed:
        return None
    where = "the `targets` of its grid" if is_packed else f"`{_ignoring_field(method)}`"
    shown = alias if is_head else alias.rpartition(".")[2]
    return (
        f"vLLM looks it up as {shown}, which is not in {where}: quantize with "
        "`serve_with: {vllm: …}`, or add that name in config.json"
    )


def _head(targets: Collection[str], packed: Collection[str]) -> list[str]:
    """Return the head if a group holds it without naming it."""
    return [_HEAD] if _ANY_LINEAR in targets and _HEAD in packed else []


def _ignoring_field(method: str) -> str:
    return "ignore" if method == _COMPRESSED_TENSORS else "modules_to_not_convert"


def _matches(name: str, target: str) -> bool:
    if target.startswith("re:"):
        return re.match(target[3:], name) is not None
    return target in {_ANY_LINEAR, name}
