"""The linear layers of the phone model and of its encoders: which share an input, and where a scale of it folds; no torch.

What stands behind a GELU, a sigmoid or a sum that others read too has no source: no scale of it can be taken up before.
``tests/unit/passes/awq/test_awq_whole.py`` folds all of them and holds the answers equal.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from compressor.models.capabilities.linear_groups import Block, Site, Source

if TYPE_CHECKING:
    from collections.abc import Iterator

    from compressor.models.families.autoglm_phone.config import PhoneConfig, VisionConfig

_QUERY, _KEY, _VALUE, _OUT = (f"attention.{name}" for name in ("query", "key", "value", "out"))

_GATED_FFN = (
    Site("ffn", ("ffn.gate", "ffn.up"), Source("ffn_norm", "norm")),
    Site("ffn output", ("ffn.down",), Source("ffn.up", "rows"), "ffn", "ffn_norm"),
)
"""Of ``blocks.GatedFeedForward`` behind a norm."""

_TRANSFORMER = (
    Site("attention", (_QUERY, _KEY, _VALUE), Source("attention_norm", "norm")),
    Site("attention output", (_OUT,), Source(_VALUE, "rows"), "attention", "attention_norm"),
    Site("ffn", ("up",), Source("ffn_norm", "norm")),
    Site("ffn output", ("down",), None, "down", "ffn_norm"),
)
"""Of ``blocks.TransformerLayer``."""

_SQUEEZE_EXCITE = (
    Site("squeeze", ("squeeze.down",)),
    Site(
        "excite", ("squeeze.up",), Source("squeeze.down", "rows"), "squeeze.up"
    ),  # a ReLU lets positive scales pass
)
"""Of ``vision.SqueezeExcite``."""


def vision_blocks(config: VisionConfig, prefix: str, reader: str) -> Iterator[Block]:
    """Of a vision encoder whose vector is read by the linear layer ``reader``."""
    if config.vision == "vit-lite":
        yield Block(prefix, (Site("patches", ("embed",), None, "embed"),))
        yield from (
            Block(f"{prefix}.layers.{number}", _TRANSFORMER)
            for number in range(config.vision_layers)
        )
        yield Block("", (Site("image", (reader,), Source(f"{prefix}.norm", "norm"), reader),))
        return
    for number, block in enumerate(config.vision_blocks):
        if block.squeeze:
            yield Block(f"{prefix}.blocks.{number}", _SQUEEZE_EXCITE)
    yield Block("", (Site("image", (reader,), None, reader),))


def phone_blocks(config: PhoneConfig) -> Iterator[Block]:
    """Of the whole model."""
    yield from vision_blocks(config, "vision", "fusion.from_vision")
    if config.speech == "wav2vec-bridge":
        yield from (
            Block(f"speech.layers.{number}", _TRANSFORMER) for number in range(config.speech_layers)
        )
    yield Block(
        "fusion",
        (
            Site("speech", ("from_speech",), None, "from_speech"),
            Site("adapter", ("adapter_in",), Source("adapter_norm", "norm")),
            Site("adapter output", ("adapter_out",), None, "adapter_out", "adapter_norm"),
        ),
    )
    heads = Source(
        _VALUE, "rows", repeats=config.heads // config.key_heads, block=config.head_width
    )
    reading = (
        Site("attention", (_QUERY, _KEY, _VALUE), Source("attention_norm", "norm")),
        Site("attention output", (_OUT,), heads, "attention", "attention_norm"),
        *_GATED_FFN,
    )
    yield from (
        Block(f"text_encoder.layers.{number}", reading) for number in range(config.encoder_layers)
    )
    spaces = (Site("command", ("command_space",)), Site("cells", ("cell_space",)))
    yield Block("fusion", spaces)
    meeting = (
        Site("query", (_QUERY,), Source("query_norm", "norm", other_readers=(("gate_in", 0),))),
        Site(
            "context",
            (_KEY, _VALUE),
            Source("context_norm", "norm", other_readers=(("gate_in", config.hidden),)),
        ),
        Site("attention output", (_OUT,), Source(_VALUE, "rows"), "attention"),
        Site("gate", ("gate_in",)),
        Site("gate output", ("gate_out",), None, "gate_out"),
        *_GATED_FFN,
    )
    yield from (Block(f"fusion.layers.{number}", meeting) for number in range(config.fusion_layers))
    writing = (  # queries are few of the positions that keys and values see
        Site(
            "memory", (_KEY, _VALUE), Source("attention_norm", "norm", other_readers=((_QUERY, 0),))
        ),
        Site("query", (_QUERY,)),
        Site("attention output", (_OUT,), heads, "attention"),
        *_GATED_FFN,
    )
    yield from (
        Block(f"text_decoder.layers.{number}", writing) for number in range(config.decoder_layers)
    )
