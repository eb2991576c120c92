"""Family ``sentence-encoder``: tokens in, one vector of length 1 out."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from compressor.models.capabilities.layer_kinds import LayerKinds
from compressor.models.capabilities.linear_groups import LinearGroups
from compressor.models.capabilities.signature import InputSpec, Signature
from compressor.models.contract import CapabilityTable, Family
from compressor.models.families.autoglm_phone.arithmetic import (
    Cost,
    normalization,
    transformer_layer,
)
from compressor.models.families.sentence_encoder.config import PRESETS, EncoderConfig
from compressor.models.families.sentence_encoder.linear_groups import encoder_blocks

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import nn


class SentenceEncoder(Family[EncoderConfig]):
    """Sentence-BERT (Reimers & Gurevych 2019): BERT, mean over valid tokens, scaled to length 1."""

    name = "sentence-encoder"
    Config = EncoderConfig
    presets: ClassVar[Mapping[str, EncoderConfig]] = PRESETS

    def signature(self, config: EncoderConfig) -> Signature:
        """Return tokens and their mask as inputs, the embedding as output.

        The mask is 1 for text and 0 for padding. There are no classes.
        """
        shape, longest = ("batch", "tokens"), config.max_position_embeddings
        inputs = (
            InputSpec("input_ids", "int64", shape, below=config.vocab_size, longest=longest),
            InputSpec("attention_mask", "int64", shape, below=2, longest=longest),
        )
        return Signature(inputs, ("embedding",))

    def parameters(self, config: EncoderConfig) -> dict[str, int]:
        """Return the parameters of BERT."""
        rows = config.vocab_size + config.max_position_embeddings + config.type_vocab_size
        tables = Cost(rows * config.hidden_size) + normalization(config.hidden_size)
        return {"bert": (tables + self._layers(config)).parameters}

    def macs(self, config: EncoderConfig) -> int:
        """Return the MACs of one text of ``config.tokens`` tokens."""
        return self._layers(config).macs

    def _layers(self, config: EncoderConfig) -> Cost:
        head = config.hidden_size // config.num_attention_heads
        width, inner, length = config.hidden_size, config.intermediate_size, config.tokens
        return transformer_layer(width, config.num_attention_heads, head, inner, length).times(
            config.num_hidden_layers
        )

    def build(self, config: EncoderConfig) -> nn.Module:
        """Return a ``SentenceEncoderModel``."""
        from compressor.models.families.sentence_encoder.model import SentenceEncoderModel

        return SentenceEncoderModel(config)

    def capabilities(self, config: EncoderConfig) -> CapabilityTable:
        """Return the linear groups of BERT's layers, and the kinds of its layers."""
        return {
            LinearGroups: lambda: LinearGroups(encoder_blocks(config)),
            LayerKinds: lambda: LayerKinds(batch_norms=False, embedding_tables=True),
        }
