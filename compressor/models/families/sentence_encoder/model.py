"""Module of ``sentence-encoder``.

Shapes: B texts, T tokens, H width.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn
from torch.nn import functional

if TYPE_CHECKING:
    from compressor.models.families.sentence_encoder.config import EncoderConfig


class SentenceEncoderModel(nn.Module):
    """Mean of the tokens of transformers' BERT, scaled to length 1 (Reimers & Gurevych 2019)."""

    def __init__(self, config: EncoderConfig) -> None:
        from transformers import BertConfig, BertModel

        super().__init__()
        bert_config = BertConfig(**config.model_dump(exclude={"tokens"}))
        # Eager attention consists of single products, which are visible in a traced graph.
        bert_config._attn_implementation = "eager"
        self.bert = BertModel(bert_config, add_pooling_layer=False)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> dict[str, Tensor]:
        """Map tokens and mask, int64 [B, T], to ``embedding`` [B, H] of length 1."""
        tokens_BTH = self.bert(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        mask_BT1 = attention_mask[:, :, None].to(tokens_BTH.dtype)
        mean_BH = (tokens_BTH * mask_BT1).sum(dim=1) / mask_BT1.sum(dim=1).clamp(min=1.0)
        return {"embedding": functional.normalize(mean_BH, dim=-1)}
