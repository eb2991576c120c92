"""The architecture of ``autoglm-phone`` and its presets; plain values, no torch."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from compressor.config.record import Record

Count = Annotated[int, Field(ge=1)]

OFFSET = 1
"""A UTF-8 byte ``b`` is token ``b + OFFSET``; 0 pads."""
START = 257
"""The token the decoder starts from (GLM's "start of piece")."""
ANSWERS = 258
"""The first answer token: cell-1, cell-2, …, and after the last cell, absent."""


class Block(Record):
    """One inverted residual, a row of MobileNetV3's table (Howard et al. 2019, table 1)."""

    kernel: Count
    """Side of the depthwise kernel; odd."""
    expanded: Count
    """Channels between the two 1x1 convolutions."""
    out: Count
    """Channels that leave the block."""
    stride: Literal[1, 2]
    """Stride of the depthwise convolution."""
    squeeze: bool
    """Whether squeeze-and-excitation weighs the expanded channels."""
    squeezed: Count | None = None
    """Channels inside squeeze-and-excitation; by default a quarter of the expanded ones, and at least 8."""
    residual: bool | None = None
    """Whether the block's input is added to its output; by default wherever stride and channels allow it."""
    expands: bool = True
    """Whether a 1x1 convolution makes the expanded channels; otherwise they are the block's input itself."""

    @property
    def squeezed_channels(self) -> int:
        """Channels inside squeeze-and-excitation."""
        return self.squeezed or max(8, self.expanded // 4)

    def is_residual(self, inputs: int) -> bool:
        """Whether an input of ``inputs`` channels is added to the output."""
        allowed = self.stride == 1 and inputs == self.out
        return allowed if self.residual is None else self.residual


class VisionConfig(Record):
    """A vision encoder: one vector of ``vision_width`` per image."""

    vision: Literal["mobilenet", "vit-lite"]
    """mobilenet: inverted residuals after MobileNetV3. vit-lite: a small vision transformer."""
    vision_width: Count
    """Width of the vector that leaves the encoder (vit-lite: of every token)."""
    vision_stem: Count = 16
    """mobilenet: channels of the first convolution, which halves the image."""
    vision_blocks: tuple[Block, ...] = ()
    """mobilenet: the inverted residuals in order."""
    vision_activation: Literal["hardswish", "relu6"] = "hardswish"
    """mobilenet: what follows every normalization but the last of a block."""
    vision_padding: Literal["even", "tensorflow"] = "even"
    """mobilenet: zeros around strided convolutions: as many on both sides, or no more than needed and the odd one at the end."""
    vision_norm_epsilon: Annotated[float, Field(gt=0)] = 1e-5
    """mobilenet: added to the variance in batch normalizations."""
    pixel_mean: float = 127.5
    """What is taken from every pixel value (0 … 255)."""
    pixel_scale: Annotated[float, Field(gt=0)] = 127.5
    """What it is then divided by."""
    vision_patch: Count = 8
    """vit-lite: side of a patch in pixels."""
    vision_layers: Count = 4
    """vit-lite: number of transformer layers."""
    vision_heads: Count = 4
    """vit-lite: attention heads."""
    vision_head_width: Count = 32
    """vit-lite: width of one head."""
    vision_ffn: Count = 256
    """vit-lite: inner width of the feed-forward network."""


class PhoneConfig(VisionConfig):
    """Everything that shapes the model, as saved in config.json."""

    screen_size: Count
    """Height and width of the screen in pixels."""
    grid: Count = 3
    """The screen is grid x grid cells; the answer is one of them, or none."""

    speech: Literal["mel-cnn", "wav2vec-bridge"]
    """mel-cnn: a 1-D CNN over mel frames. wav2vec-bridge: a transformer over convolved frames, then a bridge."""
    mels: Count = 80
    """Mel bands of a frame."""
    frames: Count
    """Usual number of mel frames, for counting; any number can be fed."""
    speech_width: Count
    """Channels of the speech encoder."""
    speech_layers: Annotated[int, Field(ge=0)]
    """mel-cnn: residual blocks. wav2vec-bridge: transformer layers."""
    speech_heads: Count = 4
    """wav2vec-bridge: attention heads."""
    speech_head_width: Count = 32
    """wav2vec-bridge: width of one head."""
    speech_ffn: Count = 256
    """wav2vec-bridge: inner width of the feed-forward network."""

    tokens: Count
    """Usual number of text tokens, for counting; any number can be fed."""
    hidden: Count
    """Width of the text model, and of all that is fused with it."""
    ffn: Count
    """Inner width of the text model's gated feed-forward networks."""
    heads: Count
    """Query heads of the text model."""
    key_heads: Count
    """Key and value heads of the text model; each serves heads / key_heads query heads."""
    head_width: Count
    """Width of one head; even, because rotary embeddings turn pairs."""
    encoder_layers: Annotated[int, Field(ge=0)]
    """Layers of the text encoder."""
    decoder_layers: Annotated[int, Field(ge=0)]
    """Layers of the text decoder."""

    adapter: Count
    """Inner width of the adapter that image and speech share."""
    fusion_layers: Count
    """Layers of gated cross-attention."""
    gate: Count
    """Inner width of the MLP that computes the gate."""
    queries: Count = 1
    """Vectors that a command is pooled to."""
    shared: Count
    """Width of the space that cells and commands share."""
    temperature: Annotated[float, Field(gt=0)] = 0.07
    """Temperature of the InfoNCE terms and of the pointer (van den Oord et al. 2018)."""
    concepts: Annotated[int, Field(ge=0)] = 0
    """Concepts that the auxiliary labels name; each gets a prototype in the shared space. Training only, never exported."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Dropout after each sublayer of the text model, while training."""

    @property
    def cells(self) -> int:
        """Cells of the screen."""
        return self.grid**2

    @property
    def answers(self) -> int:
        """Answers: each cell, and absent."""
        return self.cells + 1

    @property
    def vocabulary(self) -> int:
        """UTF-8 bytes, padding, the start token and the answers."""
        return ANSWERS + self.answers

    @property
    def tile(self) -> int:
        """Side of one cell in pixels."""
        return self.screen_size // self.grid

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.screen_size % self.grid:
            raise ValueError(f"screen_size {self.screen_size} is not divisible by grid {self.grid}")
        if self.heads % self.key_heads:
            raise ValueError(f"heads {self.heads} is not divisible by key_heads {self.key_heads}")
        if self.head_width % 2:
            raise ValueError(f"head_width {self.head_width} is odd; rotary embeddings turn pairs")
        check_vision(self, self.tile)
        return self


def check_vision(config: VisionConfig, side: int) -> None:
    """Refuse an encoder that cannot read square images of ``side`` pixels.

    Raises:
        ValueError: patches do not tile the image, a kernel is even, or a block needs other channels than it gets.
    """
    if config.vision == "vit-lite" and side % config.vision_patch:
        raise ValueError(
            f"vision_patch {config.vision_patch} does not divide an image of {side} pixels"
        )
    if any(block.kernel % 2 == 0 for block in config.vision_blocks):
        raise ValueError("vision_blocks: kernels must be odd")
    inputs = config.vision_stem
    for number, block in enumerate(config.vision_blocks):
        if block.residual and (block.stride != 1 or inputs != block.out):
            raise ValueError(
                f"vision_blocks[{number}]: {inputs} channels cannot be added to {block.out} at stride {block.stride}"
            )
        if not block.expands and inputs != block.expanded:
            raise ValueError(
                f"vision_blocks[{number}]: without a convolution that expands, {inputs} channels cannot become {block.expanded}"
            )
        inputs = block.out
