"""Hyperparameters of a model as keys of a GGUF file, and tensors that hold some of them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import gguf
import numpy as np
from gguf import GGUFWriter, RopeScalingType

from passes.export_gguf.architectures import GgufArchitecture, rotary_fields
from passes.export_gguf.blocks import Array

_SLIDING = "sliding_attention"
_DEFAULT_BASE = 10000.0
_SECTIONS = 4
"""Sections of positions that llama.cpp reads; unused ones are empty."""


@dataclass(frozen=True, slots=True)
class Hyperparameters:
    """The language model's config, with transformers' defaults."""

    architecture: GgufArchitecture
    model_type: str
    fields: Mapping[str, Any]
    """Fields of the config's class."""

    @property
    def heads(self) -> int:
        """Query heads."""
        return int(self.fields["num_attention_heads"])

    @property
    def key_heads(self) -> int:
        """Key and value heads."""
        return int(self.fields.get("num_key_value_heads") or self.heads)

    @property
    def head_width(self) -> int:
        """Values of a head."""
        return int(self.fields.get("head_dim") or self.fields["hidden_size"] // self.heads)

    @property
    def rotary(self) -> Mapping[str, Any]:
        """Rotary fields of layers with full attention."""
        return rotary_fields(self.fields)

    @property
    def rotary_kind(self) -> str:
        """``rope_type``."""
        return str(self.rotary.get("rope_type") or self.rotary.get("type") or "default")

    @property
    def rotary_width(self) -> int:
        """Values of a head that are rotated."""
        factor = self.rotary.get("partial_rotary_factor")
        if factor is None:
            factor = self.fields.get("partial_rotary_factor") or 1.0
        return int(self.head_width * factor)

    @property
    def position_sections(self) -> tuple[int, ...]:
        """Rotated pairs of a head for each position (M-RoPE); empty where a token has one."""
        if self.architecture.projector is None:
            return ()
        sections = self.rotary.get("mrope_section") or self.fields.get("mrope_section") or ()
        return tuple(int(size) for size in sections)

    @property
    def positions(self) -> int:
        """Positions that llama.cpp computes as the model does.

        Its Llama attends to all of them, so a window of Mistral's limits them.
        """
        positions = int(self.fields["max_position_embeddings"])
        window = self.fields.get("sliding_window")
        if self.model_type == "mistral" and window is not None:
            return min(positions, int(window))
        return positions

    @property
    def original_positions(self) -> int:
        """Positions before rotary embeddings were scaled."""
        name = "original_max_position_embeddings"
        return int(
            self.rotary.get(name) or self.fields.get(name) or self.fields["max_position_embeddings"]
        )


def write_hyperparameters(writer: GGUFWriter, model: Hyperparameters) -> None:
    """Write the keys that llama.cpp computes with."""
    fields = model.fields
    writer.add_block_count(fields["num_hidden_layers"])
    writer.add_context_length(model.positions)
    writer.add_embedding_length(fields["hidden_size"])
    writer.add_feed_forward_length(fields["intermediate_size"])
    writer.add_head_count(model.heads)
    writer.add_head_count_kv(model.key_heads)
    writer.add_key_length(model.head_width)
    writer.add_value_length(model.head_width)
    writer.add_vocab_size(fields["vocab_size"])
    writer.add_layer_norm_rms_eps(fields["rms_norm_eps"])
    writer.add_rope_dimension_count(model.rotary_width)
    writer.add_rope_freq_base(float(model.rotary.get("rope_theta", _DEFAULT_BASE)))
    if sections := model.position_sections:
        writer.add_rope_dimension_sections([*sections, 0, 0, 0][:_SECTIONS])
    _write_rotary_scaling(writer, model)
    if model.model_type == "gemma3_text":
        _write_gemma3(writer, model)
    if model.model_type == "granite":
        _write_granite(writer, fields)
    if model.model_type == "phi3":
        writer.add_sliding_window(0)  # attention to all positions; a window is refused


def _write_rotary_scaling(writer: GGUFWriter, model: Hyperparameters) -> None:
    rotary, kind = model.rotary, model.rotary_kind
    if kind == "linear":
        writer.add_rope_scaling_type(RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(float(rotary["factor"]))
    elif kind == "yarn":
        writer.add_rope_scaling_type(RopeScalingType.YARN)
        writer.add_rope_scaling_factor(float(rotary["factor"]))
        writer.add_rope_scaling_orig_ctx_len(model.original_positions)
        for name, write in (
            ("beta_fast", writer.add_rope_scaling_yarn_beta_fast),
            ("beta_slow", writer.add_rope_scaling_yarn_beta_slow),
        ):
            if rotary.get(name) is not None:
                write(float(rotary[name]))
    elif kind == "longrope":
        writer.add_rope_scaling_type(RopeScalingType.LONGROPE)
        writer.add_rope_scaling_orig_ctx_len(model.original_positions)
        writer.add_rope_scaling_attn_factors(_longrope_factor(model))


def _longrope_factor(model: Hyperparameters) -> float:
    """Return the factor of cosines and sines beyond the original positions."""
    scale = model.fields["max_position_embeddings"] / model.original_positions
    if scale <= 1:
        return 1.0
    return math.sqrt(1 + math.log(scale) / math.log(model.original_positions))


def _write_gemma3(writer: GGUFWriter, model: Hyperparameters) -> None:
    fields = model.fields
    writer.add_sliding_window(fields["sliding_window"])
    sliding = (fields.get("rope_parameters") or {}).get(_SLIDING) or {}
    writer.add_rope_freq_base_swa(
        float(sliding.get("rope_theta") or fields.get("rope_local_base_freq") or _DEFAULT_BASE)
    )
    if cap := fields.get("final_logit_softcapping"):
        writer.add_final_logit_softcapping(float(cap))


def _write_granite(writer: GGUFWriter, fields: Mapping[str, Any]) -> None:
    writer.add_attention_scale(float(fields["attention_multiplier"]))
    writer.add_embedding_scale(float(fields["embedding_multiplier"]))
    writer.add_residual_scale(float(fields["residual_multiplier"]))
    writer.add_logit_scale(float(fields["logits_scaling"]))


def hyperparameter_tensors(model: Hyperparameters) -> Iterator[tuple[str, Array]]:
    """Yield float32 tensors that state rotary frequencies."""
    names = gguf.TENSOR_NAMES
    if model.rotary_kind == "llama3":
        name = names[gguf.MODEL_TENSOR.ROPE_FREQS]
        yield f"{name}.weight", _llama3_factors(model)
    if model.rotary_kind == "longrope":
        for tensor, field in (
            (gguf.MODEL_TENSOR.ROPE_FACTORS_LONG, "long_factor"),
            (gguf.MODEL_TENSOR.ROPE_FACTORS_SHORT, "short_factor"),
        ):
            yield f"{names[tensor]}.weight", np.array(model.rotary[field], np.float32)


def _llama3_factors(model: Hyperparameters) -> Array:
    """Return the divisor of each rotary frequency.

    Wavelengths below the original context over `high_freq_factor` are kept, those above it over
    `low_freq_factor` are stretched by `factor`, and those between are blended.
    """
    rotary, width = model.rotary, model.head_width
    base = float(rotary.get("rope_theta", _DEFAULT_BASE))
    frequencies = base ** (-np.arange(0, width, 2, dtype=np.float64) / width)
    turns = model.original_positions * frequencies / (2 * np.pi)
    low, high = float(rotary["low_freq_factor"]), float(rotary["high_freq_factor"])
    blend = np.clip((turns - low) / (high - low), 0, 1)
    divisors: Array = 1 / ((1 - blend) / float(rotary["factor"]) + blend)
    return divisors.astype(np.float32)
