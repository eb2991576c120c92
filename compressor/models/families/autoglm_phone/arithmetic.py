"""Exact parameters and multiply-accumulates from a config alone, without torch.

Each function mirrors one module of this package; ``tests/unit/models/test_families.py`` compares
them. Only matrix products and convolutions count as multiply-accumulates.
"""

from __future__ import annotations

from dataclasses import dataclass

from compressor.models.families.autoglm_phone.config import Block, PhoneConfig, VisionConfig


@dataclass(frozen=True, slots=True)
class Cost:
    """Parameters, and multiply-accumulates of one sample."""

    parameters: int = 0
    macs: int = 0

    def __add__(self, other: Cost) -> Cost:
        """Return the cost of both, one after the other."""
        return Cost(self.parameters + other.parameters, self.macs + other.macs)

    def times(self, layers: int) -> Cost:
        """Return the cost of ``layers`` layers with weights of their own."""
        return Cost(self.parameters * layers, self.macs * layers)

    def applied(self, times: int) -> Cost:
        """Return the cost of ``times`` applications of the same weights."""
        return Cost(self.parameters, self.macs * times)


def linear(inputs: int, outputs: int, positions: int, *, bias: bool = True) -> Cost:
    """Return the cost of ``nn.Linear`` on ``positions`` vectors."""
    return Cost(inputs * outputs + bias * outputs, inputs * outputs * positions)


def convolution(
    inputs: int, outputs: int, kernel: int, positions: int, *, bias: bool = False
) -> Cost:
    """Return the cost of a convolution with ``kernel`` taps at ``positions`` output positions."""
    weights = inputs * outputs * kernel
    return Cost(weights + bias * outputs, weights * positions)


def normalization(width: int, *, bias: bool = True) -> Cost:
    """Return the cost of layer or batch normalization, or without ``bias`` of RMSNorm."""
    return Cost(width * (1 + bias))


@dataclass(frozen=True, slots=True)
class AttentionShape:
    """Dimensions of ``blocks.Attention``."""

    width: int
    heads: int
    key_heads: int
    head_width: int
    bias: bool

    def cost(self, length: int, memory: int) -> Cost:
        """Return the cost of ``length`` queries over ``memory`` keys."""
        queries, keys = self.heads * self.head_width, self.key_heads * self.head_width
        return (
            linear(self.width, queries, length, bias=self.bias)
            + linear(self.width, keys, memory, bias=self.bias).times(2)
            + linear(queries, self.width, length, bias=self.bias)
            + Cost(0, 2 * length * memory * queries)
        )


def transformer_layer(width: int, heads: int, head: int, ffn: int, length: int) -> Cost:
    """Return the cost of ``blocks.TransformerLayer``."""
    return (
        normalization(width).times(2)
        + AttentionShape(width, heads, heads, head, bias=True).cost(length, length)
        + linear(width, ffn, length)
        + linear(ffn, width, length)
    )


def gated_ffn(width: int, ffn: int, length: int) -> Cost:
    """Return the cost of ``blocks.GatedFeedForward``."""
    return linear(width, ffn, length, bias=False).times(2) + linear(ffn, width, length, bias=False)


def glm_layer(config: PhoneConfig, length: int, memory: int) -> Cost:
    """Return the cost of ``text.GLMLayer`` for ``length`` positions and ``memory`` before them."""
    attention = AttentionShape(
        config.hidden, config.heads, config.key_heads, config.head_width, bias=False
    )
    return (
        normalization(config.hidden, bias=False).times(2)
        + attention.cost(length, memory + length)
        + gated_ffn(config.hidden, config.ffn, length)
    )


def _inverted_residual(block: Block, inputs: int, side: int) -> tuple[Cost, int]:
    """Return the cost of a block, and the side of its output."""
    after = -(-side // block.stride)
    squeezed = block.squeezed_channels
    expand = convolution(inputs, block.expanded, 1, side**2) + normalization(block.expanded)
    cost = (
        (expand if block.expands else Cost())
        + convolution(1, block.expanded, block.kernel**2, after**2)
        + normalization(block.expanded)
        + convolution(block.expanded, block.out, 1, after**2)
        + normalization(block.out)
    )
    if block.squeeze:
        cost += linear(block.expanded, squeezed, 1) + linear(squeezed, block.expanded, 1)
    return cost, after


def vision(config: VisionConfig, side: int) -> Cost:
    """Return the cost of ``vision.vision_encoder`` on one square image of ``side`` pixels."""
    width = config.vision_width
    if config.vision == "vit-lite":
        patches = (side // config.vision_patch) ** 2
        return (
            linear(3 * config.vision_patch**2, width, patches)
            + Cost(patches * width)
            + transformer_layer(
                width, config.vision_heads, config.vision_head_width, config.vision_ffn, patches
            ).times(config.vision_layers)
            + normalization(width)
        )
    side = -(-side // 2)
    channels = config.vision_stem
    total = convolution(3, channels, 9, side**2) + normalization(channels)
    for block in config.vision_blocks:
        cost, side = _inverted_residual(block, channels, side)
        total += cost
        channels = block.out
    return total + convolution(channels, width, 1, side**2) + normalization(width)


def _halved(length: int, times: int) -> int:
    for _ in range(times):
        length = -(-length // 2)
    return length


def speech_length(config: PhoneConfig) -> int:
    """Return the number of vectors that the speech encoder outputs for the usual frames."""
    return _halved(config.frames, 3)


def speech(config: PhoneConfig) -> Cost:
    """Return the cost of ``speech.speech_encoder`` on the usual number of frames."""
    width = config.speech_width
    first, second, third = (_halved(config.frames, times) for times in (1, 2, 3))
    if config.speech == "wav2vec-bridge":
        return (
            convolution(config.mels, width, 3, first, bias=True)
            + convolution(width, width, 3, second, bias=True)
            + transformer_layer(
                width, config.speech_heads, config.speech_head_width, config.speech_ffn, second
            ).times(config.speech_layers)
            + normalization(width)
            + convolution(width, width, 3, third, bias=True)
        )
    residual = (convolution(width, width, 3, third) + normalization(width)).times(2)
    return (
        convolution(config.mels, width, 5, first)
        + convolution(width, width, 5, second)
        + convolution(width, width, 5, third)
        + normalization(width).times(3)
        + residual.times(config.speech_layers)
    )


def text_encoder(config: PhoneConfig) -> Cost:
    """Return the cost of ``text.TextEncoder`` on written and spoken command, with the embedding."""
    layers = glm_layer(config, config.tokens, 0) + Cost(
        0, glm_layer(config, speech_length(config), 0).macs
    )
    norm = normalization(config.hidden, bias=False)
    return Cost(config.vocabulary * config.hidden) + layers.times(config.encoder_layers) + norm


def text_decoder(config: PhoneConfig) -> Cost:
    """Return the cost of ``text.TextDecoder`` for one token, with the tied output embedding."""
    memory = config.queries + config.cells
    return (
        glm_layer(config, 1, memory).times(config.decoder_layers)
        + normalization(config.hidden, bias=False)
        + Cost(0, config.hidden * config.answers)
    )


def fusion(config: PhoneConfig) -> Cost:
    """Return the cost of ``fusion.Fusion``, with the products of the shared space."""
    hidden, cells, spoken = config.hidden, config.cells, speech_length(config)
    adapter = linear(hidden, config.adapter, 1) + linear(config.adapter, hidden, 1)
    attention = AttentionShape(hidden, config.heads, config.heads, config.head_width, bias=False)
    layer = (
        normalization(hidden, bias=False).times(3)
        + attention.cost(config.queries, cells)
        + linear(2 * hidden, config.gate, config.queries)
        + linear(config.gate, hidden, config.queries)
        + gated_ffn(hidden, config.ffn, config.queries)
    )
    return (
        linear(config.vision_width, hidden, cells)
        + linear(config.speech_width, hidden, spoken)
        + normalization(hidden, bias=False)
        + adapter.applied(cells + spoken)
        + Cost(config.queries * hidden, 2 * config.queries * hidden * (config.tokens + spoken))
        + layer.times(config.fusion_layers)
        + linear(hidden, config.shared, config.tokens + spoken, bias=False)
        + linear(hidden, config.shared, cells, bias=False)
        + Cost(0, config.shared * cells * (config.tokens + spoken))
    )


def parts(config: PhoneConfig) -> dict[str, Cost]:
    """Return the cost of every part by the name of its submodule."""
    return {
        "text_encoder": text_encoder(config),
        "text_decoder": text_decoder(config),
        "vision": vision(config, config.tile).applied(config.cells),
        "speech": speech(config),
        "fusion": fusion(config),
        "concepts": Cost(config.concepts * config.shared),
    }
