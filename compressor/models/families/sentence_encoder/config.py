"""Architecture of ``sentence-encoder`` and its presets; plain values, no torch."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from compressor.config.record import Record


class EncoderConfig(Record):
    """Dimensions of BERT by transformers' names, as saved in config.json."""

    vocab_size: Annotated[int, Field(ge=1)]
    """Number of tokens in the vocabulary."""
    hidden_size: Annotated[int, Field(ge=1)]
    """Width of the hidden states and of the embedding."""
    num_hidden_layers: Annotated[int, Field(ge=1)]
    """Number of transformer layers."""
    num_attention_heads: Annotated[int, Field(ge=1)]
    """Attention heads of a layer; they divide the width."""
    intermediate_size: Annotated[int, Field(ge=1)]
    """Width of a layer's feed-forward network."""
    max_position_embeddings: Annotated[int, Field(ge=1)]
    """Maximum number of tokens of a text."""
    type_vocab_size: Annotated[int, Field(ge=1)] = 2
    """Number of segment types; only the first is used."""
    layer_norm_eps: Annotated[float, Field(gt=0)] = 1e-12
    """Value added to the variance in layer normalizations."""
    hidden_act: Literal["gelu", "relu"] = "gelu"
    """Activation of the feed-forward network."""
    tokens: Annotated[int, Field(ge=1)] = 128
    """Number of tokens that multiply-accumulates are counted for."""

    @model_validator(mode="after")
    def _check_dimensions(self) -> Self:
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size {self.hidden_size} is no multiple of {self.num_attention_heads} heads"
            )
        if self.tokens > self.max_position_embeddings:
            raise ValueError(
                f"tokens {self.tokens} exceeds max_position_embeddings "
                f"{self.max_position_embeddings}"
            )
        return self


TINY = EncoderConfig(
    vocab_size=256,
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=4,
    intermediate_size=64,
    max_position_embeddings=32,
    tokens=16,
)

MINILM = EncoderConfig(
    vocab_size=30522,
    hidden_size=384,
    num_hidden_layers=6,
    num_attention_heads=12,
    intermediate_size=1536,
    max_position_embeddings=512,
)
"""all-MiniLM-L6-v2 (Wang et al. 2020); ``examples/minilm/prepare.py`` downloads its weights."""

PRESETS = {"tiny": TINY, "minilm-l6": MINILM}
