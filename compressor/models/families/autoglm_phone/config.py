"""Architecture of ``autoglm-phone``; plain values, no torch."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from compressor.config.record import Record

Count = Annotated[int, Field(ge=1)]

OFFSET = 1
"""The token of UTF-8 byte ``b`` is ``b + OFFSET``; token 0 is padding."""
START = 257
"""First input token of the decoder (GLM's "start of piece")."""
ANSWERS = 258
"""First answer token; the answers are the cells, and after the last cell *absent*."""


class Block(Record):
    """One inverted residual: a row of MobileNetV3's table (Howard et al. 2019, table 1)."""

    kernel: Count
    """Side of the depthwise kernel, odd."""
    expanded: Count
    """Number of channels between the two 1x1 convolutions."""
    out: Count
    """Number of output channels."""
    stride: Literal[1, 2]
    """Stride of the depthwise convolution."""
    squeeze: bool
    """Apply squeeze-and-excitation to the expanded channels."""
    squeezed: Count | None = None
    """Number of channels inside squeeze-and-excitation. Default: a quarter of `expanded`, at least
    8."""
    residual: bool | None = None
    """Add the block's input to its output. Default: wherever stride and channels allow it."""
    expands: bool = True
    """Compute the expanded channels by a 1x1 convolution; false: they are the block's input."""

    @property
    def squeezed_channels(self) -> int:
        """Number of channels inside squeeze-and-excitation."""
        return self.squeezed or max(8, self.expanded // 4)

    def is_residual(self, inputs: int) -> bool:
        """Return True if an input of ``inputs`` channels is added to the output."""
        allowed = self.stride == 1 and inputs == self.out
        return allowed if self.residual is None else self.residual


class VisionConfig(Record):
    """A vision encoder, which maps an image to a vector of width ``vision_width``."""

    vision: Literal["mobilenet", "vit-lite"]
    """Type of encoder. `mobilenet`: inverted residuals as in MobileNetV3. `vit-lite`: a small
    vision transformer."""
    vision_width: Count
    """Width of the encoder's output; for vit-lite also of every token."""
    vision_stem: Count = 16
    """mobilenet: number of channels of the first convolution, which has stride 2."""
    vision_blocks: tuple[Block, ...] = ()
    """mobilenet: inverted residuals in order."""
    vision_activation: Literal["hardswish", "relu6"] = "hardswish"
    """mobilenet: activation after every normalization except the last of a block."""
    vision_padding: Literal["even", "tensorflow"] = "even"
    """mobilenet: zero padding of strided convolutions. `even`: equal on both sides. `tensorflow`:
    no more than needed, with the odd row and column at the end."""
    vision_norm_epsilon: Annotated[float, Field(gt=0)] = 1e-5
    """mobilenet: value added to the variance in batch normalizations."""
    pixel_mean: float = 127.5
    """Value subtracted from every pixel (0 … 255)."""
    pixel_scale: Annotated[float, Field(gt=0)] = 127.5
    """Divisor of the pixels after the subtraction."""
    vision_patch: Count = 8
    """vit-lite: side of a patch in pixels."""
    vision_layers: Count = 4
    """vit-lite: number of transformer layers."""
    vision_heads: Count = 4
    """vit-lite: attention heads of a layer."""
    vision_head_width: Count = 32
    """vit-lite: width of a head."""
    vision_ffn: Count = 256
    """vit-lite: width of the feed-forward network."""


class PhoneConfig(VisionConfig):
    """The architecture, as saved in config.json."""

    screen_size: Count
    """Height and width of the screen in pixels."""
    grid: Count = 3
    """Cells per row and column of the screen; the answer is one of them, or none."""

    speech: Literal["mel-cnn", "wav2vec-bridge"]
    """Type of speech encoder. `mel-cnn`: a 1-D CNN over mel frames. `wav2vec-bridge`: convolutions,
    a transformer, and a strided convolution to the text model."""
    mels: Count = 80
    """Number of mel bands."""
    frames: Count
    """Number of mel frames that multiply-accumulates are counted for; inputs may have more."""
    speech_width: Count
    """Width of the speech encoder."""
    speech_layers: Annotated[int, Field(ge=0)]
    """Number of residual blocks (mel-cnn) or transformer layers (wav2vec-bridge)."""
    speech_heads: Count = 4
    """wav2vec-bridge: attention heads of a layer."""
    speech_head_width: Count = 32
    """wav2vec-bridge: width of a head."""
    speech_ffn: Count = 256
    """wav2vec-bridge: width of the feed-forward network."""

    tokens: Count
    """Number of text tokens that multiply-accumulates are counted for; inputs may have more."""
    hidden: Count
    """Width of the text model and of everything that is fused with it."""
    ffn: Count
    """Width of the text model's gated feed-forward networks."""
    heads: Count
    """Query heads of the text model."""
    key_heads: Count
    """Key and value heads of the text model; each is shared by heads / key_heads query heads."""
    head_width: Count
    """Width of a head; even, because rotary embeddings rotate pairs."""
    encoder_layers: Annotated[int, Field(ge=0)]
    """Number of layers of the text encoder."""
    decoder_layers: Annotated[int, Field(ge=0)]
    """Number of layers of the text decoder."""

    adapter: Count
    """Width of the bottleneck of the adapter that image and speech share."""
    fusion_layers: Count
    """Number of layers of gated cross-attention."""
    gate: Count
    """Width of the MLP that computes the gate."""
    queries: Count = 1
    """Number of vectors that a command is pooled to."""
    shared: Count
    """Width of the space shared by cells and commands."""
    temperature: Annotated[float, Field(gt=0)] = 0.07
    """Temperature of the InfoNCE terms and of the pointer (van den Oord et al. 2018)."""
    concepts: Annotated[int, Field(ge=0)] = 0
    """Number of concepts in the auxiliary labels, each with a prototype in the shared space; used
    in training only and never exported."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Dropout after each sublayer of the text model, in training."""

    @property
    def cells(self) -> int:
        """Number of cells of the screen."""
        return self.grid**2

    @property
    def answers(self) -> int:
        """Number of answers: the cells, and *absent*."""
        return self.cells + 1

    @property
    def vocabulary(self) -> int:
        """Number of tokens: padding, UTF-8 bytes, start token and answers."""
        return ANSWERS + self.answers

    @property
    def tile(self) -> int:
        """Side of a cell in pixels."""
        return self.screen_size // self.grid

    @model_validator(mode="after")
    def _check_dimensions(self) -> Self:
        if self.screen_size % self.grid:
            raise ValueError(f"screen_size {self.screen_size} is not divisible by grid {self.grid}")
        if self.heads % self.key_heads:
            raise ValueError(f"heads {self.heads} is not divisible by key_heads {self.key_heads}")
        if self.head_width % 2:
            raise ValueError(f"head_width {self.head_width} is odd; rotary embeddings rotate pairs")
        check_vision(self, self.tile)
        return self


def check_vision(config: VisionConfig, side: int) -> None:
    """Check that an encoder can process square images of ``side`` pixels.

    Raises:
        ValueError: patches do not tile the image, a kernel is even, or the channels of a block do
            not fit.
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
                f"vision_blocks[{number}]: {inputs} channels cannot be added to {block.out} "
                f"at stride {block.stride}"
            )
        if not block.expands and inputs != block.expanded:
            raise ValueError(
                f"vision_blocks[{number}]: without an expansion, {inputs} channels cannot become "
                f"{block.expanded}"
            )
        inputs = block.out
