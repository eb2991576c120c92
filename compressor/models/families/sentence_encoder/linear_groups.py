"""The linear layers of a sentence encoder: which share an input, and where a scale of it folds; no torch.

BERT's norms lie on the stream itself, which others read too: they take up nothing. Its values do, and a ReLU lets scales pass.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from compressor.models.capabilities.linear_groups import Block, Site, Source

if TYPE_CHECKING:
    from compressor.models.families.sentence_encoder.config import EncoderConfig


def encoder_blocks(config: EncoderConfig) -> tuple[Block, ...]:
    """The layers."""
    query, key, value = (f"attention.self.{name}" for name in ("query", "key", "value"))
    inner, attended, out = "intermediate.dense", "attention.output.dense", "output.dense"
    sites = (
        Site("attention", (query, key, value)),
        Site("attention output", (attended,), Source(value, "rows"), attended, query),
        Site("ffn", (inner,)),
        Site(
            "ffn output",
            (out,),
            Source(inner, "rows") if config.hidden_act == "relu" else None,
            out,
            inner,
        ),
    )
    return tuple(
        Block(f"bert.encoder.layer.{number}", sites) for number in range(config.num_hidden_layers)
    )
