"""Architecture of ``sentence-encoder`` and its presets; plain values, no torch."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from compressor.config.record import Record


class EncoderConfig(Record):
    """BERT's dimensions by the names that transformers has for them, as saved in config.json."""

    vocab_size: Annotated[int, Field(ge=1)]
    """Rows of the table of tokens."""
    hidden_size: Annotated[int, Field(ge=1)]
    """Width of every token, and of the vector that comes out."""
    num_hidden_layers: Annotated[int, Field(ge=1)]
    """Layers."""
    num_attention_heads: Annotated[int, Field(ge=1)]
    """Heads of each; they share the width."""
    intermediate_size: Annotated[int, Field(ge=1)]
    """Width inside the feed-forward part of a layer."""
    max_position_embeddings: Annotated[int, Field(ge=1)]
    """Tokens that a text may have."""
    type_vocab_size: Annotated[int, Field(ge=1)] = 2
    """Rows of the table of segments, of which only the first is used."""
    layer_norm_eps: Annotated[float, Field(gt=0)] = 1e-12
    """Added to variances."""
    hidden_act: Literal["gelu", "relu"] = "gelu"
    """Inside the feed-forward part."""
    tokens: Annotated[int, Field(ge=1)] = 128
    """Length of the text that multiply-accumulates are counted for."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size {self.hidden_size} is no multiple of {self.num_attention_heads} heads"
            )
        if self.tokens > self.max_position_embeddings:
            raise ValueError(
                f"tokens {self.tokens} are more than max_position_embeddings {self.max_position_embeddings}"
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
"""all-MiniLM-L6-v2 (Wang et al. 2020; Reimers & Gurevych 2019); ``examples/minilm/prepare.py`` fetches its weights."""

PRESETS = {"tiny": TINY, "minilm-l6": MINILM}
