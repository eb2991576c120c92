"""``sentence-encoder`` as the engine sees it: tokens in, one vector out, near those of texts that mean the same."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from compressor.config.record import Record
from compressor.models.contract import Family, InputSpec
from compressor.models.families.autoglm_phone.arithmetic import (
    Cost,
    normalization,
    transformer_layer,
)
from compressor.models.families.sentence_encoder.linears import encoder_blocks

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor, nn

    from compressor.models.capabilities.linear_groups import Block


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


class SentenceEncoder(Family[EncoderConfig]):
    """BERT without its pooler, the mean over the tokens that are none of padding, scaled to length 1 (Sentence-BERT)."""

    name = "sentence-encoder"
    Config = EncoderConfig
    presets: ClassVar[Mapping[str, EncoderConfig]] = {"tiny": TINY, "minilm-l6": MINILM}

    def inputs(self, config: EncoderConfig) -> tuple[InputSpec, ...]:
        """Tokens, and which of them are text: 1, and 0 for padding."""
        shape, longest = ("batch", "tokens"), config.max_position_embeddings
        return (
            InputSpec("input_ids", "int64", shape, below=config.vocab_size, longest=longest),
            InputSpec("attention_mask", "int64", shape, below=2, longest=longest),
        )

    def outputs(self, config: EncoderConfig) -> tuple[str, ...]:  # noqa: ARG002
        """The vector; there are no classes."""
        return ("embedding",)

    def parameters(self, config: EncoderConfig) -> dict[str, int]:
        """All of them are BERT's."""
        rows = config.vocab_size + config.max_position_embeddings + config.type_vocab_size
        tables = Cost(rows * config.hidden_size) + normalization(config.hidden_size)
        return {"bert": (tables + self._layers(config)).parameters}

    def macs(self, config: EncoderConfig) -> int:
        """For one text of ``tokens`` tokens."""
        return self._layers(config).macs

    def _layers(self, config: EncoderConfig) -> Cost:
        head = config.hidden_size // config.num_attention_heads
        width, inner, length = config.hidden_size, config.intermediate_size, config.tokens
        return transformer_layer(width, config.num_attention_heads, head, inner, length).times(
            config.num_hidden_layers
        )

    def build(self, config: EncoderConfig) -> nn.Module:
        """A ``SentenceEncoderModel``."""
        from compressor.models.families.sentence_encoder.model import SentenceEncoderModel

        return SentenceEncoderModel(config)

    def linear_blocks(self, config: EncoderConfig) -> tuple[Block, ...]:
        """BERT's layers."""
        return encoder_blocks(config)

    def meant(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Those of the mask."""
        return inputs["attention_mask"] != 0
