"""The module of ``sentence-encoder``.

Shapes: B texts, T tokens of each, H the width.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn
from torch.nn import functional

if TYPE_CHECKING:
    from compressor.models.families.sentence_encoder.config import EncoderConfig


class SentenceEncoderModel(nn.Module):
    """BERT of transformers; the mean of the tokens; length 1 (Reimers & Gurevych 2019)."""

    def __init__(self, config: EncoderConfig) -> None:
        from transformers import BertConfig, BertModel

        super().__init__()
        of_bert = BertConfig(**config.model_dump(exclude={"tokens"}))
        of_bert._attn_implementation = (
            "eager"  # products of its own: what multiplies is seen by whoever traces it
        )
        self.bert = BertModel(of_bert, add_pooling_layer=False)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> dict[str, Tensor]:
        """Tokens and mask, int64 [B, T], to embedding [B, H] of length 1."""
        tokens_BTH = self.bert(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        mask_BT1 = attention_mask[:, :, None].to(tokens_BTH.dtype)
        mean_BH = (tokens_BTH * mask_BT1).sum(dim=1) / mask_BT1.sum(dim=1).clamp(min=1.0)
        return {"embedding": functional.normalize(mean_BH, dim=-1)}
