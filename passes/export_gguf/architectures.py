"""Architectures that both transformers and llama.cpp compute, one row each; no torch.

To support another architecture, add a row to ``ARCHITECTURES``, and compare llama.cpp with torch by
``benchmarks/gguf.py architectures``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from compressor.models.families.transformers.layouts import LAYOUTS, text_config

Fields = Mapping[str, Any]
"""The language model's fields of config.json."""
_FULL = "full_attention"
_GEMMA_PERIOD = 6
_PLAIN_ROTARY = frozenset({"default", "linear", "yarn"})
VISION = "model.visual."
"""Prefix of the tensors of a vision tower, which is written to a file of its own."""
IMAGE_ENDS = ("<|begin_of_image|>", "<|end_of_image|>")
"""Tokens that llama.cpp writes around an image of `glm4v`."""
_MERGED, _FRAMES = 2, 2
"""Patches in a row, and frames, that llama.cpp's `glm4v` merges."""


@dataclass(frozen=True, slots=True)
class GgufArchitecture:
    """One ``model_type`` of transformers in llama.cpp."""

    name: str
    """``general.architecture``."""
    classes: tuple[str, ...]
    """Classes of transformers that hold such a language model."""
    norm_offset: float = 0.0
    """Value that transformers adds to the weights of norms, and the file holds."""
    activation: str = "silu"
    """The activation that llama.cpp computes; it reads none from the file."""
    rotary: frozenset[str] = _PLAIN_ROTARY
    """Kinds of rotary embeddings that the file can state."""
    head_width_is_free: bool = True
    """False if llama.cpp requires heads as wide as hidden width / heads."""
    three_digits: str | None = None
    """Name of the pre-tokenizer of Llama 3 in this architecture; None for the usual name."""
    further_limits: Callable[[Fields], Iterator[str]] = lambda _: iter(())
    """Yields what llama.cpp does not compute beside the limits above."""
    projector: str | None = None
    """``clip.projector_type`` of the vision tower, which is a file of its own; None without one."""
    vision_limits: Callable[[Fields], Iterator[str]] = lambda _: iter(())
    """Yields what llama.cpp does not compute of the fields of ``vision_config``."""


def _no_window(fields: Fields) -> Iterator[str]:
    if fields.get("use_sliding_window"):
        yield "a sliding window (`use_sliding_window`)"


def _qwen3_limits(fields: Fields) -> Iterator[str]:
    yield from _no_window(fields)
    if fields.get("attention_bias"):
        yield "biases of attention (`attention_bias`)"


def _gemma3_limits(fields: Fields) -> Iterator[str]:
    if fields.get("attn_logit_softcapping"):
        yield "capped attention scores (`attn_logit_softcapping`)"
    if fields.get("use_bidirectional_attention"):
        yield "attention to later tokens (`use_bidirectional_attention`)"
    head_width = fields.get("head_dim", 256)
    if fields.get("query_pre_attn_scalar", 256) != head_width:
        yield f"attention scores scaled by another value than the head width {head_width}"
    types = fields.get("layer_types") or []
    usual = ["full" if (n + 1) % _GEMMA_PERIOD == 0 else "sliding" for n in range(len(types))]
    if types and types != [f"{kind}_attention" for kind in usual]:
        yield f"other `layer_types` than full attention in every {_GEMMA_PERIOD}th layer"


def _phi3_limits(fields: Fields) -> Iterator[str]:
    window, positions = fields.get("sliding_window"), fields.get("max_position_embeddings", 4096)
    if window is not None and window < positions:
        yield f"a sliding window of {window} of {positions} positions (`sliding_window`)"


def _olmo2_limits(fields: Fields) -> Iterator[str]:
    if fields.get("tie_word_embeddings"):
        yield "a head that is tied to the embedding (`tie_word_embeddings`)"
    if fields.get("attention_bias"):
        yield "biases of attention (`attention_bias`)"


def _glm4_limits(fields: Fields) -> Iterator[str]:
    if (factor := fields.get("partial_rotary_factor", 0.5)) > 1:
        yield f"`partial_rotary_factor` {factor}"


def _glm4v_vision_limits(fields: Fields) -> Iterator[str]:
    known = {
        "hidden_act": "silu",
        "attention_bias": False,
        "spatial_merge_size": _MERGED,
        "temporal_patch_size": _FRAMES,
    }
    for name, value in known.items():
        if (stated := fields.get(name, value)) != value:
            yield f"`{name}: {stated}` of the vision tower"
    rotary = fields.get("rope_parameters") or {}
    if (base := rotary.get("rope_theta", 10000.0)) != 10000.0:
        yield f"`rope_theta: {base}` of the vision tower"


ARCHITECTURES: Mapping[str, GgufArchitecture] = {
    "llama": GgufArchitecture(
        "llama",
        ("LlamaForCausalLM",),
        rotary=_PLAIN_ROTARY | {"llama3"},
    ),
    "mistral": GgufArchitecture(
        "llama",
        ("MistralForCausalLM",),
        rotary=_PLAIN_ROTARY | {"llama3"},
    ),
    "qwen2": GgufArchitecture(
        "qwen2",
        ("Qwen2ForCausalLM",),
        head_width_is_free=False,
        further_limits=_no_window,
    ),
    "qwen3": GgufArchitecture("qwen3", ("Qwen3ForCausalLM",), further_limits=_qwen3_limits),
    "gemma3_text": GgufArchitecture(
        "gemma3",
        ("Gemma3ForCausalLM",),
        norm_offset=1.0,
        activation="gelu_pytorch_tanh",
        rotary=frozenset({"default", "linear"}),
        further_limits=_gemma3_limits,
    ),
    "phi3": GgufArchitecture(
        "phi3",
        ("Phi3ForCausalLM",),
        rotary=frozenset({"default", "longrope"}),
        head_width_is_free=False,
        further_limits=_phi3_limits,
    ),
    "glm4": GgufArchitecture(
        "glm4",
        ("Glm4ForCausalLM",),
        rotary=frozenset({"default"}),
        three_digits="glm4",
        further_limits=_glm4_limits,
    ),
    "glm4v": GgufArchitecture(
        "glm4",
        ("Glm4vForConditionalGeneration",),
        rotary=frozenset({"default"}),
        head_width_is_free=False,
        three_digits="glm4",
        further_limits=_glm4_limits,
        projector="glm4v",
        vision_limits=_glm4v_vision_limits,
    ),
    "olmo2": GgufArchitecture(
        "olmo2",
        ("Olmo2ForCausalLM",),
        head_width_is_free=False,
        three_digits="dbrx",
        further_limits=_olmo2_limits,
    ),
    "granite": GgufArchitecture(
        "granite",
        ("GraniteForCausalLM",),
        rotary=frozenset({"default"}),
        head_width_is_free=False,
    ),
}
"""``model_type`` to its row."""


def architecture_of(tree: Mapping[str, Any]) -> GgufArchitecture | None:
    """Return the row of the class that config.json names; None if there is none."""
    row = ARCHITECTURES.get(str(tree.get("model_type")))
    names = tuple(tree.get("architectures") or ())
    return row if row is not None and len(names) == 1 and names[0] in row.classes else None


def architecture_problem(tree: Mapping[str, Any]) -> str | None:
    """Return why llama.cpp cannot compute the model of a config.json; None if it can."""
    row = architecture_of(tree)
    if row is None:
        names = ", ".join(name for row in ARCHITECTURES.values() for name in row.classes)
        label = ", ".join(tree.get("architectures") or ()) or str(tree.get("model_type"))
        if tree.get("vision_config"):
            return (
                f"{label} takes images, and its vision tower has no row in the table of GGUF "
                f"architectures; supported: {names}"
            )
        return f"{label} has no row in the table of GGUF architectures; supported: {names}"
    fields = fields_with_defaults(tree)
    limits = [
        *_limits(row, fields),
        *row.further_limits(fields),
        *row.vision_limits(tree.get("vision_config") or {}),
    ]
    return f"llama.cpp's {row.name} does not compute {'; '.join(limits)}" if limits else None


def rotary_fields(fields: Fields) -> Mapping[str, Any]:
    """Return the rotary fields of layers with full attention, in their former or present place."""
    stated = fields.get("rope_parameters") or fields.get("rope_scaling") or {}
    full = stated.get(_FULL)
    return full if isinstance(full, Mapping) else stated


def fields_with_defaults(tree: Mapping[str, Any]) -> Fields:
    """Return the language model's fields of a config.json with a row, stated or by default."""
    layout = LAYOUTS.get(tree["model_type"])
    stated = {name: value for name, value in text_config(tree).items() if value is not None}
    return {**(layout.defaults if layout else {}), **stated}


def _limits(row: GgufArchitecture, fields: Fields) -> Iterator[str]:
    name = "hidden_activation" if "hidden_activation" in fields else "hidden_act"
    if (activation := fields.get(name, row.activation)) != row.activation:
        yield f"the activation {activation} (`{name}`)"
    rotary = rotary_fields(fields)
    kind = rotary.get("rope_type") or rotary.get("type") or "default"
    if kind not in row.rotary:
        yield f"rotary embeddings of type {kind}"
    if kind == "yarn" and (stated := {"attention_factor", "mscale"} & rotary.keys()):
        yield f"`{min(stated)}` of rotary embeddings"
    hidden, heads = fields["hidden_size"], fields["num_attention_heads"]
    width = fields.get("head_dim") or hidden // heads
    if not row.head_width_is_free and width * heads != hidden:
        yield f"{heads} heads of {width} values beside a hidden width of {hidden} (`head_dim`)"
