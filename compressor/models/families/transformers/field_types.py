"""Types and ranges of the fields of config.json that the classes of transformers require; no torch.

The classes check their fields when a model is built, which is too late: the plan refuses what they
would refuse. ``tests/properties/test_config_types.py`` compares the table with the classes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

FieldTypes = tuple[type, ...]
_INT, _FLOAT, _BOOL, _STR, _DICT = (int,), (float,), (bool,), (str,), (dict,)
_INTS, _STRS, _LIST, _NUMBER = (int, list), (list,), (list,), (int, float)
CLASS_FIELDS: Mapping[str, FieldTypes] = {
    "attention_bias": _BOOL,
    "attention_dropout": _NUMBER,
    "attn_logit_softcapping": _FLOAT,
    "bos_token_id": _INT,
    "chunk_size_feed_forward": _INT,
    "depth": _INT,
    "eos_token_id": _INTS,
    "final_logit_softcapping": _FLOAT,
    "head_dim": _INT,
    "hidden_act": _STR,
    "hidden_activation": _STR,
    "hidden_size": _INT,
    "id2label": _DICT,
    "image_end_token_id": _INT,
    "image_start_token_id": _INT,
    "image_token_id": _INT,
    "in_channels": _INT,
    "initializer_range": _FLOAT,
    "intermediate_size": _INT,
    "is_encoder_decoder": _BOOL,
    "label2id": _DICT,
    "layer_types": _STRS,
    "max_position_embeddings": _INT,
    "max_window_layers": _INT,
    "mlp_bias": _BOOL,
    "num_attention_heads": _INT,
    "num_heads": _INT,
    "num_hidden_layers": _INT,
    "num_key_value_heads": _INT,
    "out_hidden_size": _INT,
    "pad_token_id": _INT,
    "pretraining_tp": _INT,
    "problem_type": _STR,
    "query_pre_attn_scalar": _INT,
    "rms_norm_eps": _FLOAT,
    "rope_parameters": _DICT,
    "sliding_window": _INT,
    "spatial_merge_size": _INT,
    "tie_word_embeddings": _BOOL,
    "transformers_version": _STR,
    "use_bidirectional_attention": _BOOL,
    "use_cache": _BOOL,
    "use_sliding_window": _BOOL,
    "video_end_token_id": _INT,
    "video_start_token_id": _INT,
    "video_token_id": _INT,
    "vocab_size": _INT,
}
"""Fields that the classes declare, where a list of sizes is not supported. Null is allowed, since
``CheckpointConfig`` leaves it out where a class does not accept it."""
_OTHER_FIELDS: Mapping[str, FieldTypes] = {
    "mrope_section": _LIST,
    "original_max_position_embeddings": _INT,
    "partial_rotary_factor": _NUMBER,
    "rope_local_base_freq": _NUMBER,
    "rope_scaling": _DICT,
    "rope_theta": _NUMBER,
    "sliding_window_pattern": _INT,
}
"""Fields of former versions, and those of rotary embeddings that may lie beside the others."""
_ROTARY_FIELDS: Mapping[str, FieldTypes] = {
    "attention_factor": _NUMBER,
    "beta_fast": _NUMBER,
    "beta_slow": _NUMBER,
    "factor": _NUMBER,
    "high_freq_factor": _NUMBER,
    "long_factor": _LIST,
    "low_freq_factor": _NUMBER,
    "mrope_section": _LIST,
    "mscale": _NUMBER,
    "mscale_all_dim": _NUMBER,
    "original_max_position_embeddings": _INT,
    "partial_rotary_factor": _NUMBER,
    "rope_theta": _NUMBER,
    "rope_type": _STR,
    "short_factor": _LIST,
    "truncate": _BOOL,
    "type": _STR,
}
"""Fields of ``rope_parameters`` and ``rope_scaling``."""
_POSITIVE = frozenset(
    {
        "factor",
        "long_factor",
        "original_max_position_embeddings",
        "partial_rotary_factor",
        "query_pre_attn_scalar",
        "rope_local_base_freq",
        "rope_theta",
        "short_factor",
        "sliding_window_pattern",
    }
)
_ELEMENTS: Mapping[str, FieldTypes] = {
    "eos_token_id": _INT,
    "layer_types": _STR,
    "long_factor": _NUMBER,
    "mrope_section": _INT,
    "short_factor": _NUMBER,
}
"""Types of the elements of a list."""
ACTIVATIONS = frozenset(
    {
        *("gelu", "gelu_10", "gelu_accurate", "gelu_fast", "gelu_new", "gelu_python"),
        *("gelu_python_tanh", "gelu_pytorch_tanh", "hardswish", "laplace", "leaky_relu", "linear"),
        *("mish", "prelu", "quick_gelu", "relu", "relu2", "relu6", "sigmoid", "silu"),
        *("sqrtsoftplus", "swish", "tanh", "xielu"),
    }
)
"""Activations that transformers has."""
_LARGEST = 2**31 - 1
"""Largest size: tensors and graphs count in 32 bits in several runtimes."""
_NAMES: Mapping[FieldTypes, str] = {
    _INT: "a whole number",
    _FLOAT: "a number with a decimal point or an exponent",
    _BOOL: "true or false",
    _STR: "a name",
    _DICT: "a mapping",
    _INTS: "a whole number or a list of them",
    _LIST: "a list",
    _NUMBER: "a number",
}


def type_problems(tree: Mapping[str, Any], text: str | None, vision: str | None) -> Iterator[str]:
    """Yield the fields with a value of another type or range than transformers reads.

    Args:
        tree: config.json.
        text: field with the language model's fields; None if they lie at the top.
        vision: field with the vision tower's fields; None without one.
    """
    yield from _field_problems(tree, "")
    for name in (text, vision):
        part = None if name is None else tree.get(name)
        if isinstance(part, dict):
            yield from _field_problems(part, f"{name}.")
        elif part is not None:
            yield f"`{name}` is {part!r}, expected a mapping"


def _field_problems(fields: Mapping[str, Any], prefix: str) -> Iterator[str]:
    yield from _value_problems(fields, {**CLASS_FIELDS, **_OTHER_FIELDS}, prefix)
    for name in ("rope_parameters", "rope_scaling"):
        rotary = fields.get(name)
        if not isinstance(rotary, dict):
            continue
        yield from _value_problems(rotary, _ROTARY_FIELDS, f"{prefix}{name}.")
        for layer_type, nested in rotary.items():
            if isinstance(nested, dict):
                yield from _value_problems(nested, _ROTARY_FIELDS, f"{prefix}{name}.{layer_type}.")


def _value_problems(
    fields: Mapping[str, Any], types: Mapping[str, FieldTypes], prefix: str
) -> Iterator[str]:
    for name, value in fields.items():
        if name in types and value is not None and (expected := _mismatch(name, value, types)):
            yield f"`{prefix}{name}` is {value!r}, expected {expected}"


def _mismatch(name: str, value: Any, types: Mapping[str, FieldTypes]) -> str | None:
    """Return what is expected instead of a value; None if it is right."""
    elements = value if isinstance(value, list) else [value]
    # The classes take neither a whole number for a float nor true for a number.
    if type(value) not in types[name]:
        return _NAMES[types[name]]
    if isinstance(value, list) and any(type(e) not in _ELEMENTS[name] for e in value):
        return f"{_NAMES[_ELEMENTS[name]]} at each place of the list"
    if name in _POSITIVE and not all(element > 0 for element in elements):
        return "more than 0"
    if name in {"hidden_act", "hidden_activation"} and value not in ACTIVATIONS:
        return f"one of {', '.join(sorted(ACTIVATIONS))}"
    if name == "id2label" and not all(key.isdecimal() for key in value):
        return "whole numbers as keys"
    if name == "initializer_range" and not 0 <= value <= 1:
        return "a number from 0 to 1"
    if type(value) is int and value > _LARGEST:
        return f"at most {_LARGEST}"
    return None
