"""Vision encoders: square images [N, 3, S, S], about −1 to 1, to vectors [N, vision_width]."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from compressor.models.families.autoglm_phone.blocks import TransformerLayer
from compressor.models.families.autoglm_phone.config import Block, VisionConfig

_ACTIVATIONS = {"hardswish": functional.hardswish, "relu6": functional.relu6}


def floats_from_pixels(pixels: Tensor, config: VisionConfig) -> Tensor:
    """Return uint8 pixels as floats, in [−1, 1] with the config's default mean and scale."""
    return pixels.float() / config.pixel_scale - config.pixel_mean / config.pixel_scale


def tiles_from_screen(screen_BCSS: Tensor, grid: int) -> Tensor:
    """Cut screens [B, 3, S, S] into their cells [B * grid², 3, S/grid, S/grid], row by row.

    Tiles are encoded one by one, as vision-language models do with large screens (LLaVA-NeXT, Liu
    et al. 2024): small icons keep their resolution, and a cell's vector depends on that cell alone.
    """
    batch, channels, size, _ = screen_BCSS.shape
    tile = size // grid
    rows = screen_BCSS.reshape(batch, channels, grid, tile, grid, tile)
    return rows.permute(0, 2, 4, 1, 3, 5).reshape(batch * grid * grid, channels, tile, tile)


class SqueezeExcite(nn.Module):
    """Weight channels by a function of their means over the image (Hu et al. 2018)."""

    def __init__(self, channels: int, squeezed: int) -> None:
        super().__init__()
        self.down = nn.Linear(channels, squeezed)
        self.up = nn.Linear(squeezed, channels)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """Map [N, C, H, W] to [N, C, H, W]."""
        weights_NC = functional.hardsigmoid(
            self.up(functional.relu(self.down(x_NCHW.mean(dim=(2, 3)))))
        )
        return x_NCHW * weights_NC[:, :, None, None]


class TensorflowPad(nn.Module):
    """TensorFlow's "SAME" padding: no more than needed, the odd row and column at the end."""

    def __init__(self, kernel: int, stride: int) -> None:
        super().__init__()
        self.kernel, self.stride = kernel, stride

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """Pad a square image [N, C, S, S] to [N, C, S + p, S + p]."""
        side = x_NCHW.shape[-1]
        zeros = max((-(-side // self.stride) - 1) * self.stride + self.kernel - side, 0)
        before, after = zeros // 2, zeros - zeros // 2
        return functional.pad(x_NCHW, (before, after, before, after))


def _padding(config: VisionConfig, kernel: int, stride: int) -> tuple[nn.Module, int]:
    """Return the module before a convolution, and the padding of the convolution itself."""
    if config.vision_padding == "tensorflow" and stride > 1:
        return TensorflowPad(kernel, stride), 0
    return nn.Identity(), kernel // 2


class InvertedResidual(nn.Module):
    """Inverted residual: expand, filter each channel, project.

    MobileNetV3 (Howard et al. 2019), or with ReLU6 MobileNetV2 (Sandler et al. 2018).
    """

    def __init__(self, block: Block, inputs: int, config: VisionConfig) -> None:
        super().__init__()
        self.residual, self.expands = block.is_residual(inputs), block.expands
        self.activation = _ACTIVATIONS[config.vision_activation]
        if block.expands:
            self.expand = nn.Conv2d(inputs, block.expanded, 1, bias=False)
            self.expand_norm = nn.BatchNorm2d(block.expanded, config.vision_norm_epsilon)
        self.pad, padding = _padding(config, block.kernel, block.stride)
        self.filter = nn.Conv2d(
            block.expanded,
            block.expanded,
            block.kernel,
            stride=block.stride,
            padding=padding,
            groups=block.expanded,
            bias=False,
        )
        self.filter_norm = nn.BatchNorm2d(block.expanded, config.vision_norm_epsilon)
        self.squeeze = (
            SqueezeExcite(block.expanded, block.squeezed_channels)
            if block.squeeze
            else nn.Identity()
        )
        self.project = nn.Conv2d(block.expanded, block.out, 1, bias=False)
        self.project_norm = nn.BatchNorm2d(block.out, config.vision_norm_epsilon)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """Map [N, inputs, H, W] to [N, out, H/stride, W/stride]."""
        x = self.activation(self.expand_norm(self.expand(x_NCHW))) if self.expands else x_NCHW
        x = self.activation(self.filter_norm(self.filter(self.pad(x))))
        out: Tensor = self.project_norm(self.project(self.squeeze(x)))
        return x_NCHW + out if self.residual else out


class MobileNet(nn.Module):
    """MobileNet or EfficientNet-Lite: stem, inverted residuals, 1x1 convolution, mean."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.activation = _ACTIVATIONS[config.vision_activation]
        self.pad, padding = _padding(config, 3, 2)
        self.stem = nn.Conv2d(3, config.vision_stem, 3, stride=2, padding=padding, bias=False)
        self.stem_norm = nn.BatchNorm2d(config.vision_stem, config.vision_norm_epsilon)
        inputs = (config.vision_stem, *(block.out for block in config.vision_blocks))
        self.blocks = nn.ModuleList(
            InvertedResidual(block, channels, config)
            for block, channels in zip(config.vision_blocks, inputs, strict=False)
        )
        self.last = nn.Conv2d(inputs[-1], config.vision_width, 1, bias=False)
        self.last_norm = nn.BatchNorm2d(config.vision_width, config.vision_norm_epsilon)

    def forward(self, images_NCSS: Tensor) -> Tensor:
        """Map [N, 3, S, S] to [N, vision_width]."""
        # In channels-last memory, training on a CPU takes half the time (measured with oneDNN).
        images_NCSS = images_NCSS.contiguous(memory_format=torch.channels_last)
        x = self.activation(self.stem_norm(self.stem(self.pad(images_NCSS))))
        for block in self.blocks:
            x = block(x)
        out: Tensor = self.activation(self.last_norm(self.last(x))).mean(dim=(2, 3))
        return out


class ViTLite(nn.Module):
    """Small vision transformer (Dosovitskiy et al. 2021): learned positions, mean pooling."""

    def __init__(self, config: VisionConfig, side: int) -> None:
        super().__init__()
        self.patch = config.vision_patch
        self.embed = nn.Linear(3 * self.patch**2, config.vision_width)
        self.positions = nn.Parameter(torch.zeros((side // self.patch) ** 2, config.vision_width))
        nn.init.normal_(self.positions, std=0.02)
        self.layers = nn.ModuleList(
            TransformerLayer(
                config.vision_width,
                config.vision_heads,
                config.vision_head_width,
                config.vision_ffn,
            )
            for _ in range(config.vision_layers)
        )
        self.norm = nn.LayerNorm(config.vision_width)

    def forward(self, images_NCSS: Tensor) -> Tensor:
        """Map [N, 3, S, S] to [N, vision_width]."""
        count, channels, side, _ = images_NCSS.shape
        rows = images_NCSS.reshape(
            count, channels, side // self.patch, self.patch, side // self.patch, self.patch
        )
        patches_NLF = rows.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)
        x_NLH = self.embed(patches_NLF) + self.positions
        for layer in self.layers:
            x_NLH = layer(x_NLH)
        out: Tensor = self.norm(x_NLH.mean(dim=1))
        return out


def vision_encoder(config: VisionConfig, side: int) -> nn.Module:
    """Return the encoder that the config names, for square images of ``side`` pixels."""
    return MobileNet(config) if config.vision == "mobilenet" else ViTLite(config, side)
