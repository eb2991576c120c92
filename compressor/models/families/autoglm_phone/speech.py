"""Speech encoders: log-mel frames [B, mels, T] to vectors [B, S, speech_width], S = T/8.

They also return the mask [B, S] of valid vectors. A frame of zeros holds no sound: it is padding,
or the command is written. Every layer keeps the outputs at such frames at zero, so that padding
changes nothing.

Shapes: B batch, F mel bands, T frames, S frames of a layer, C channels.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

from torch import Tensor, nn
from torch.nn import functional

from compressor.models.families.autoglm_phone.blocks import (
    TransformerLayer,
    attention_mask,
    rotary_angles,
)

if TYPE_CHECKING:
    from compressor.models.families.autoglm_phone.config import PhoneConfig


def valid_frames(mel_BFT: Tensor) -> Tensor:
    """Return 1 for each frame that holds sound, else 0, [B, T]."""
    return (mel_BFT.abs().amax(dim=1) > 0).to(mel_BFT.dtype)


def subtract_mean(mel_BFT: Tensor, valid_BT: Tensor) -> Tensor:
    """Subtract each band's mean over the utterance: the constant effect of microphone and voice."""
    weights = valid_BT[:, None, :]
    mean = mel_BFT.sum(dim=2, keepdim=True) / weights.sum(dim=2, keepdim=True).clamp(min=1.0)
    return (mel_BFT - mean) * weights


def _halve(valid_BT: Tensor) -> Tensor:
    """Return the mask after a convolution of stride 2: the frame at the centre decides."""
    return valid_BT[:, ::2]


class Residual(nn.Module):
    """Residual block of two convolutions over time (He et al. 2016)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Conv1d(width, width, 3, padding=1, bias=False)
        self.first_norm = nn.BatchNorm1d(width)
        self.second = nn.Conv1d(width, width, 3, padding=1, bias=False)
        self.second_norm = nn.BatchNorm1d(width)

    def forward(self, x_BCS: Tensor, valid_BS: Tensor) -> Tensor:
        """Map [B, C, S] to [B, C, S]."""
        inner = functional.relu(self.first_norm(self.first(x_BCS))) * valid_BS[:, None]
        return functional.relu(x_BCS + self.second_norm(self.second(inner))) * valid_BS[:, None]


class MelCNN(nn.Module):
    """Three strided convolutions and residual blocks over mel frames."""

    def __init__(self, config: PhoneConfig) -> None:
        super().__init__()
        channels = (config.mels, config.speech_width, config.speech_width, config.speech_width)
        self.down = nn.ModuleList(
            nn.Conv1d(inputs, outputs, 5, stride=2, padding=2, bias=False)
            for inputs, outputs in pairwise(channels)
        )
        self.down_norms = nn.ModuleList(nn.BatchNorm1d(width) for width in channels[1:])
        self.residuals = nn.ModuleList(
            Residual(config.speech_width) for _ in range(config.speech_layers)
        )

    def forward(self, mel_BFT: Tensor) -> tuple[Tensor, Tensor]:
        """Map [B, mels, T] to vectors [B, S, speech_width] and their mask [B, S]."""
        valid = valid_frames(mel_BFT)
        x_BCS = subtract_mean(mel_BFT, valid)
        for convolution, norm in zip(self.down, self.down_norms, strict=True):
            valid = _halve(valid)
            x_BCS = functional.relu(norm(convolution(x_BCS))) * valid[:, None]
        for residual in self.residuals:
            x_BCS = residual(x_BCS, valid)
        return x_BCS.transpose(1, 2), valid


class Wav2VecBridge(nn.Module):
    """Convolutions, a transformer (wav2vec 2.0, Baevski et al. 2020) and a bridge to the text.

    The bridge is a strided convolution, as the adapter of wav2vec 2.0 sequence-to-sequence models.
    """

    def __init__(self, config: PhoneConfig) -> None:
        super().__init__()
        width = config.speech_width
        self.head_width = config.speech_head_width
        self.first = nn.Conv1d(config.mels, width, 3, stride=2, padding=1)
        self.second = nn.Conv1d(width, width, 3, stride=2, padding=1)
        self.layers = nn.ModuleList(
            TransformerLayer(
                width, config.speech_heads, config.speech_head_width, config.speech_ffn
            )
            for _ in range(config.speech_layers)
        )
        self.norm = nn.LayerNorm(width)
        self.bridge = nn.Conv1d(width, width, 3, stride=2, padding=1)

    def forward(self, mel_BFT: Tensor) -> tuple[Tensor, Tensor]:
        """Map [B, mels, T] to vectors [B, S, speech_width] and their mask [B, S]."""
        valid = valid_frames(mel_BFT)
        x_BCS = subtract_mean(mel_BFT, valid)
        for convolution in (self.first, self.second):
            valid = _halve(valid)
            x_BCS = functional.gelu(convolution(x_BCS)) * valid[:, None]
        x_BSC = x_BCS.transpose(1, 2)
        rotary = rotary_angles(x_BSC.shape[1], self.head_width, x_BSC)
        for layer in self.layers:
            x_BSC = layer(x_BSC, attention_mask(valid), rotary)
        bridged_BCS = self.bridge((self.norm(x_BSC) * valid[:, :, None]).transpose(1, 2))
        return bridged_BCS.transpose(1, 2), _halve(valid)


def speech_encoder(config: PhoneConfig) -> nn.Module:
    """Return the encoder that the config names."""
    return MelCNN(config) if config.speech == "mel-cnn" else Wav2VecBridge(config)
