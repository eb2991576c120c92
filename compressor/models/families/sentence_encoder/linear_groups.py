"""Linear groups of a sentence encoder; no torch.

BERT's norms are part of the residual stream, which has other readers: no scale folds into them.
Scales fold into the values of attention, and into the layer before a ReLU.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from compressor.models.capabilities.linear_groups import Block, Site, Source

if TYPE_CHECKING:
    from compressor.models.families.sentence_encoder.config import EncoderConfig


def encoder_blocks(config: EncoderConfig) -> tuple[Block, ...]:
    """Return the layers."""
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
