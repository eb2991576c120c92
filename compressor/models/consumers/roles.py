"""Roles of linear layers in vLLM: split over GPUs, and fused with others; no torch.

vLLM decides by the class of the model. The names here are those of its decoders and of the vision
towers that transformers' checkpoints have; a layer with another name has an unknown split.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum


class Split(Enum):
    """The dimension of a linear layer that tensor parallelism divides."""

    OUTPUTS = "outputs"
    INPUTS = "inputs"
    UNKNOWN = "unknown"


_BY_OUTPUTS = frozenset(
    {
        *("q_proj", "k_proj", "v_proj", "qkv_proj", "qkv", "query_key_value", "W_pack", "c_attn"),
        *("query", "key", "value", "q", "k", "v"),
        *("gate_proj", "up_proj", "gate_up_proj", "w1", "w3"),
        *("fc1", "c_fc", "dense_h_to_4h", "linear_fc1", "lm_head"),
    }
)
_BY_INPUTS = frozenset(
    {"o_proj", "out_proj", "down_proj", "w2", "wo", "fc2", "c_proj", "dense_4h_to_h", "linear_fc2"}
)
_PROJ = "proj"
"""In vision towers: the output of attention, or the input of a merger."""
FUSED: Mapping[str, tuple[str, ...]] = {
    "qkv_proj": ("q_proj", "k_proj", "v_proj"),
    "gate_up_proj": ("gate_proj", "up_proj"),
}
"""Layers that vLLM makes of several, and their parts in the checkpoint."""
QKV = frozenset({"qkv_proj", "qkv"})
"""Names of a matrix that holds query, key and value, of the checkpoint or of vLLM."""
GATE_UP = "gate_up_proj"
_FUSION_OF = {part: fused for fused, parts in FUSED.items() for part in parts}
_TOWERS = frozenset({"visual", "vision_tower", "vision_model", "vision_encoder", "vit"})
EXPERTS = frozenset({"experts", "block_sparse_moe"})
"""Modules whose layers run in kernels for experts, which these rules do not cover."""


def split_of(name: str) -> Split:
    """Return the dimension of a layer that tensor parallelism divides."""
    parent, _, last = name.rpartition(".")
    if last == _PROJ:
        return Split.INPUTS if parent.endswith("attn") else Split.OUTPUTS
    if last in _BY_OUTPUTS:
        return Split.OUTPUTS
    return Split.INPUTS if last in _BY_INPUTS else Split.UNKNOWN


def fused_name(name: str) -> str:
    """Return the name of the layer that vLLM makes of this one and others; else its own."""
    parent, _, last = name.rpartition(".")
    fused = _FUSION_OF.get(last)
    return name if fused is None else f"{parent}.{fused}" if parent else fused


def is_in_tower(name: str) -> bool:
    """Return True if a layer belongs to a vision tower."""
    return not _TOWERS.isdisjoint(name.split("."))


def is_expert(name: str) -> bool:
    """Return True if a layer belongs to a mixture of experts."""
    return not EXPERTS.isdisjoint(name.split("."))
