"""Linear groups of the phone model and of its encoders; no torch.

A site behind a GELU, a sigmoid or a sum with other readers has no source: no scale folds there.
``tests/unit/passes/awq/test_awq_whole.py`` folds a scale into every source and compares outputs.
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
"""Sites of ``blocks.GatedFeedForward`` behind a norm."""

_TRANSFORMER = (
    Site("attention", (_QUERY, _KEY, _VALUE), Source("attention_norm", "norm")),
    Site("attention output", (_OUT,), Source(_VALUE, "rows"), "attention", "attention_norm"),
    Site("ffn", ("up",), Source("ffn_norm", "norm")),
    Site("ffn output", ("down",), None, "down", "ffn_norm"),
)
"""Sites of ``blocks.TransformerLayer``."""

_SQUEEZE_EXCITE = (
    Site("squeeze", ("squeeze.down",)),
    Site("excite", ("squeeze.up",), Source("squeeze.down", "rows"), "squeeze.up"),
)
"""Sites of ``vision.SqueezeExcite``; positive scales pass its ReLU."""

_ADAPTER = (
    Site("speech", ("from_speech",), None, "from_speech"),
    Site("adapter", ("adapter_in",), Source("adapter_norm", "norm")),
    Site("adapter output", ("adapter_out",), None, "adapter_out", "adapter_norm"),
)
_SHARED_SPACE = (Site("command", ("command_space",)), Site("cells", ("cell_space",)))
"""Sites of ``fusion.Fusion`` before and after the text encoder."""


def vision_blocks(config: VisionConfig, prefix: str, reader: str) -> Iterator[Block]:
    """Yield the blocks of a vision encoder, and of the linear layer ``reader`` of its vector."""
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
    """Yield the blocks of the whole model in the order of computation."""
    yield from vision_blocks(config, "vision", "fusion.from_vision")
    if config.speech == "wav2vec-bridge":
        yield from _layers("speech", config.speech_layers, _TRANSFORMER)
    yield Block("fusion", _ADAPTER)
    values = Source(
        _VALUE, "rows", repeats=config.heads // config.key_heads, block=config.head_width
    )
    yield from _layers("text_encoder", config.encoder_layers, _encoder_sites(values))
    yield Block("fusion", _SHARED_SPACE)
    yield from _layers("fusion", config.fusion_layers, _fusion_sites(config))
    yield from _layers("text_decoder", config.decoder_layers, _decoder_sites(values))


def _layers(part: str, count: int, sites: tuple[Site, ...]) -> Iterator[Block]:
    return (Block(f"{part}.layers.{number}", sites) for number in range(count))


def _encoder_sites(values: Source) -> tuple[Site, ...]:
    return (
        Site("attention", (_QUERY, _KEY, _VALUE), Source("attention_norm", "norm")),
        Site("attention output", (_OUT,), values, "attention", "attention_norm"),
        *_GATED_FFN,
    )


def _fusion_sites(config: PhoneConfig) -> tuple[Site, ...]:
    """Return the sites of ``fusion.GatedCrossAttention``; the gate reads query and context too."""
    query = Source("query_norm", "norm", other_readers=(("gate_in", 0),))
    context = Source("context_norm", "norm", other_readers=(("gate_in", config.hidden),))
    return (
        Site("query", (_QUERY,), query),
        Site("context", (_KEY, _VALUE), context),
        Site("attention output", (_OUT,), Source(_VALUE, "rows"), "attention"),
        Site("gate", ("gate_in",)),
        Site("gate output", ("gate_out",), None, "gate_out"),
        *_GATED_FFN,
    )


def _decoder_sites(values: Source) -> tuple[Site, ...]:
    """Return the sites of a decoder layer.

    Queries are a site of their own: they are computed at few of the positions that keys and values
    see.
    """
    memory = Source("attention_norm", "norm", other_readers=((_QUERY, 0),))
    return (
        Site("memory", (_KEY, _VALUE), memory),
        Site("query", (_QUERY,)),
        Site("attention output", (_OUT,), values, "attention"),
        *_GATED_FFN,
    )
