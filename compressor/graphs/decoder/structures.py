"""Classes of transformers whose decoder graph is built, beside those with a row in the tables.

Names, sizes, norms and activations are read from the class itself (``class_architecture``), which
refuses a class with parts that it does not know. A row holds what modules do not show. No torch.

To support another class, add a row: ``tests/unit/graphs/decoder/test_structures.py`` compares the
graph with the class.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True, slots=True)
class Structure:
    """One class, as far as its modules do not show it."""

    rotary: Literal["all", "sliding", "by flag", "none"] = "all"
    """Layers with rotary embeddings: all; with a sliding window, if any layer has one; those whose
    attention sets ``use_rope``."""
    by_group: bool = False
    """True if one projection holds queries, key and value of each key head in turn."""
    position_offset: int = 0
    """Row of the first position in a table of learned positions."""
    parallel_flags: tuple[str, ...] = ()
    """Fields of config.json that make attention and feed-forward network read the same stream."""
    unsupported: tuple[str, ...] = ()
    """Fields of config.json that, if set, add a computation that the graph does not have."""
    required: tuple[str, ...] = ()
    """Fields of config.json without which the class computes in another order."""


_PLAIN = Structure()
STRUCTURES: Mapping[str, Structure] = {
    "apertus": _PLAIN,
    "arcee": _PLAIN,
    "bitnet": _PLAIN,
    "cohere": _PLAIN,
    "cohere2": Structure(rotary="sliding"),
    "cwm": _PLAIN,
    "dots1": _PLAIN,
    "ernie4_5": _PLAIN,
    "ernie4_5_moe": _PLAIN,
    "exaone4": Structure(rotary="sliding"),
    "falcon": Structure(
        by_group=True, parallel_flags=("new_decoder_architecture",), unsupported=("alibi",)
    ),
    "gemma": Structure(unsupported=("use_bidirectional_attention",)),
    "gemma2": Structure(unsupported=("use_bidirectional_attention",)),
    "flex_olmo": _PLAIN,
    "glm": _PLAIN,
    "glm4_moe": _PLAIN,
    "gpt2": Structure(
        rotary="none",
        unsupported=("scale_attn_by_inverse_layer_idx", "add_cross_attention"),
        required=("scale_attn_weights",),
    ),
    "gpt_bigcode": Structure(
        rotary="none",
        by_group=True,
        unsupported=("add_cross_attention",),
        required=("scale_attn_weights",),
    ),
    "gpt_neox": Structure(by_group=True, parallel_flags=("use_parallel_residual",)),
    "gpt_oss": _PLAIN,
    "gptj": _PLAIN,
    "granite": _PLAIN,
    "granitemoe": _PLAIN,
    "helium": _PLAIN,
    "internlm3": _PLAIN,
    "jais2": _PLAIN,
    "ministral": _PLAIN,
    "ministral3": _PLAIN,
    "mixtral": _PLAIN,
    "nemotron": _PLAIN,
    "olmo": Structure(unsupported=("clip_qkv",)),
    "olmo2": _PLAIN,
    "olmo3": _PLAIN,
    "olmoe": Structure(unsupported=("clip_qkv",)),
    "opt": Structure(rotary="none", position_offset=2, required=("do_layer_norm_before",)),
    "persimmon": Structure(by_group=True),
    "phi": _PLAIN,
    "phi3": _PLAIN,
    "phimoe": _PLAIN,
    "qwen2_moe": _PLAIN,
    "qwen3_moe": _PLAIN,
    "seed_oss": _PLAIN,
    "smollm3": Structure(rotary="by flag"),
    "stablelm": Structure(parallel_flags=("use_parallel_residual",), unsupported=("qk_layernorm",)),
    "starcoder2": _PLAIN,
    "vaultgemma": Structure(unsupported=("use_bidirectional_attention",)),
}
"""``model_type`` to structure."""


def structure_of(tree: Mapping[str, Any]) -> Structure | None:
    """Return the structure of the class that config.json names; None if it has none.

    Only classes of causal language models have one: others of the same ``model_type`` have another
    head.
    """
    names = tuple(tree.get("architectures") or ())
    is_causal = len(names) == 1 and names[0].endswith(("ForCausalLM", "LMHeadModel"))
    return STRUCTURES.get(str(tree.get("model_type"))) if is_causal else None
