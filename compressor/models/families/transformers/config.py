"""config.json of a transformers checkpoint, validated as far as the program uses it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, Self, TypeGuard

from pydantic import ConfigDict, model_validator
from pydantic_core import PydanticCustomError

from compressor.config.record import Record
from compressor.models.contract import UNSUPPORTED
from compressor.models.families.transformers.decoder_settings import settings_problems
from compressor.models.families.transformers.field_types import type_problems
from compressor.models.families.transformers.layouts import (
    LAYOUTS,
    SIZES,
    TIED_FLAG,
    Layout,
    decoder_shape,
    is_tabulated,
    text_config,
    vision_config,
)
from compressor.models.quantized.weight_grid import FORMAT_NAMES, QUANTIZATION_CONFIG, is_packed

_DTYPES = ("float32", "float16", "bfloat16")
_DTYPE_FIELDS = ("dtype", "torch_dtype")
_VISION_SIZES = (
    "depth",
    "hidden_size",
    "num_heads",
    "in_channels",
    "image_size",
    "patch_size",
    "spatial_merge_size",
    "temporal_patch_size",
    "out_hidden_size",
    "intermediate_size",
)
_NEVER_NULL = frozenset(
    {
        "architectures",
        QUANTIZATION_CONFIG,
        "attention_bias",
        "attention_dropout",
        "head_dim",
        "hidden_act",
        "initializer_range",
        "max_position_embeddings",
        "max_window_layers",
        "mlp_bias",
        "query_pre_attn_scalar",
        "rms_norm_eps",
        "rope_theta",
        "tie_word_embeddings",
        "use_cache",
        "use_sliding_window",
    }
)
"""Fields that classes of transformers do not accept as null: there, null means absent."""
_NEVER_NULL_IN_ANY_CLASS = frozenset({"architectures", QUANTIZATION_CONFIG})
_KEY_HEADS = "num_key_value_heads"
"""Null means as many as heads where a class accepts it, and absent where it does not."""
_OPTIONAL_SIZES = (_KEY_HEADS, "head_dim", "max_position_embeddings")
_MOST_LAYERS = 10_000
"""No model has more; the names of a damaged size would fill the memory."""
_LAYER_FIELD = re.compile(r"(layers?|depth)$")
_TOKEN_ID = "_token_id"  # noqa: S105  no password
"""End of the names of fields that hold the id of a special token."""


class CheckpointConfig(Record):
    """The whole file; fields that are not declared here are kept as they are."""

    model_config = ConfigDict(
        frozen=True, extra="allow", strict=True, use_attribute_docstrings=True
    )

    model_type: str
    """Architecture, by transformers' name."""
    architectures: tuple[str, ...] = ()
    """Class of transformers that loads the checkpoint; by default that of the tables' row."""

    @property
    def tree(self) -> dict[str, Any]:
        """Content of the file."""
        return self.model_dump(mode="json")

    @model_validator(mode="before")
    @classmethod
    def _complete(cls, fields: Any) -> Any:
        """Leave out what is null and has to be absent, and name the class if no one is named."""
        if not isinstance(fields, dict):
            return fields
        layout = LAYOUTS.get(str(fields.get("model_type")))
        names = fields.get("architectures")
        if layout is not None and names and list(names) != [layout.architecture]:
            layout = None  # another class of the architecture, such as one with another head
        never_null = _NEVER_NULL if layout is not None else _NEVER_NULL_IN_ANY_CLASS
        if layout is not None and not layout.key_heads_may_be_null:
            never_null |= {_KEY_HEADS}
        fields = _without_null(fields, never_null)
        if layout is not None:
            fields = _with_one_tied_flag(fields, layout)
        if layout is not None and not fields.get("architectures"):
            fields["architectures"] = [layout.architecture]
        if isinstance(names := fields.get("architectures"), list):
            fields["architectures"] = tuple(names)  # JSON has no tuples, and the record is strict
        return fields

    @model_validator(mode="after")
    def _check_support(self) -> Self:
        tree = self.tree
        if problems := [*_class_problems(tree)]:
            raise _unsupported("; ".join(problems))
        if not is_tabulated(tree):  # the class itself checks its fields when it is built
            if problems := [*_dtype_problems(tree), *_layer_problems(tree)]:
                raise ValueError("; ".join(problems))
            return self
        layout = LAYOUTS[self.model_type]
        vision = None if layout.vision is None else "vision_config"
        problems = [*type_problems(tree, next(iter(layout.text), None), vision)]
        problems = problems or [*_dtype_problems(tree), *_size_problems(tree)]
        if not problems:  # the others compute with sizes
            problems = [*_head_problems(tree), *_token_problems(tree), *_vision_problems(tree)]
            problems = problems or settings_problems(tree)
        if problems:
            raise ValueError("; ".join(problems))
        return self


def _unsupported(problem: str) -> PydanticCustomError:
    """Return the error for a config that is valid, of a model that the family does not have."""
    return PydanticCustomError(UNSUPPORTED, "{problem}", {"problem": problem})


def _with_one_tied_flag(fields: dict[str, Any], layout: Layout) -> dict[str, Any]:
    """Move the flag of a tied head from the language model's fields to the top.

    As in transformers, a head is tied if either place states it.
    """
    for name in layout.text:
        text = fields.get(name)
        if isinstance(text, dict) and TIED_FLAG in text:
            tied = fields.get(TIED_FLAG) or text[TIED_FLAG]
            text = {key: value for key, value in text.items() if key != TIED_FLAG}
            fields = {**fields, name: text, TIED_FLAG: tied}
    return fields


def _without_null(fields: Mapping[str, Any], names: frozenset[str]) -> dict[str, Any]:
    """Return a copy without those of the named fields that are null, at any depth."""
    return {
        name: _without_null(value, names) if isinstance(value, dict) else value
        for name, value in fields.items()
        if value is not None or name not in names
    }


def _class_problems(tree: Mapping[str, Any]) -> Iterator[str]:
    names = tree["architectures"]
    if len(names) != 1:
        yield (
            f"`architectures` has to name one class of transformers, not {len(names)}; the class "
            f"decides the task of a {tree['model_type']} model"
        )
    if not is_packed(tree):
        return
    quantization = tree[QUANTIZATION_CONFIG]
    if not isinstance(quantization, dict):
        yield f"`{QUANTIZATION_CONFIG}` is no mapping"
    elif (method := quantization.get("quant_method")) not in FORMAT_NAMES:
        yield f"its weights are quantized by {method!r}; supported: {', '.join(FORMAT_NAMES)}"


def _dtype_problems(tree: Mapping[str, Any]) -> Iterator[str]:
    for field in _DTYPE_FIELDS:
        if tree.get(field) is not None and tree[field] not in _DTYPES:
            yield f"`{field}` is {tree[field]!r}, expected one of {', '.join(_DTYPES)}"


def _layer_problems(tree: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Yield numbers of layers, at any depth, that no model has."""
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from _layer_problems(value, f"{prefix}{name}.")
        elif _LAYER_FIELD.search(name) and _is_int(value) and value > _MOST_LAYERS:
            yield f"`{prefix}{name}` is {value}, expected at most {_MOST_LAYERS}"


def _size_problems(tree: Mapping[str, Any]) -> Iterator[str]:
    text = text_config(tree)
    prefix = ".".join((*LAYOUTS[tree["model_type"]].text, ""))
    required = {prefix + name: text.get(name) for name in SIZES}
    optional = {prefix + name: text[name] for name in _OPTIONAL_SIZES if text.get(name) is not None}
    if LAYOUTS[tree["model_type"]].vision is not None:
        vision = vision_config(tree)
        required |= {f"vision_config.{name}": vision[name] for name in _VISION_SIZES}
    sizes = required | optional
    invalid = [name for name, size in sizes.items() if not (_is_int(size) and size > 0)]
    if invalid:
        yield f"these are no positive numbers: {', '.join(invalid)}"
    elif (layers := text["num_hidden_layers"]) > _MOST_LAYERS:
        yield f"`{prefix}num_hidden_layers` is {layers}, expected at most {_MOST_LAYERS}"


def _head_problems(tree: Mapping[str, Any]) -> Iterator[str]:
    decoder = decoder_shape(tree)
    if decoder.heads % decoder.key_heads:
        yield f"{decoder.heads} heads are no multiple of {decoder.key_heads} key heads"
    needs_multiple = decoder.layout.hidden_by_heads or not decoder.layout.head_width_is_free
    if needs_multiple and decoder.hidden % decoder.heads:
        yield f"hidden_size {decoder.hidden} is no multiple of {decoder.heads} heads"
    types = text_config(tree).get("layer_types")
    if types is not None and len(types) != decoder.layers:
        yield f"`layer_types` names {len(types)} layers, and num_hidden_layers is {decoder.layers}"


def _token_problems(tree: Mapping[str, Any]) -> Iterator[str]:
    """Yield the special tokens that have no row in the embedding."""
    vocabulary = decoder_shape(tree).vocabulary
    layout = LAYOUTS[tree["model_type"]]
    fields = {**({} if layout.text else layout.defaults), **tree}
    if (path := layout.text) and text_config(tree):
        prefix = ".".join((*path, ""))
        text = {**layout.defaults, **text_config(tree)}
        fields |= {f"{prefix}{name}": value for name, value in text.items()}
    for name, value in fields.items():
        # One id or a list of them; a negative padding id stands for no token or counts from the end
        ids = value if isinstance(value, list) else [value]
        beyond = [token for token in ids if _is_int(token) and token >= vocabulary]
        if name.endswith(_TOKEN_ID) and beyond:
            yield (
                f"`{name}` is {', '.join(map(str, beyond))}, and the vocabulary has {vocabulary} "
                "tokens"
            )


def _vision_problems(tree: Mapping[str, Any]) -> Iterator[str]:
    decoder = decoder_shape(tree)
    if decoder.layout.vision is None:
        return
    vision = vision_config(tree)
    if vision["hidden_size"] % vision["num_heads"]:
        yield (
            f"vision_config.hidden_size {vision['hidden_size']} is no multiple of "
            f"{vision['num_heads']} heads"
        )
    if vision["out_hidden_size"] != decoder.hidden:
        yield (
            f"vision_config.out_hidden_size is {vision['out_hidden_size']}, and the language "
            f"model's hidden_size is {decoder.hidden}"
        )


def _is_int(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)
