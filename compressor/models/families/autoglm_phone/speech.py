"""Speech encoders: log-mel [B, mels, T] to vectors [B, S, speech_width], S = T/8, and their presence [B, S].

A frame of zeros is no sound: padding, or a command that was written. What follows from such frames alone is kept at zero
in every layer, so that padding changes nothing.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

from torch import Tensor, nn
from torch.nn import functional

from compressor.models.families.autoglm_phone.blocks import TransformerLayer, hiding_mask, rotations

if TYPE_CHECKING:
    from compressor.models.families.autoglm_phone.config import PhoneConfig


def presence(mel_BFT: Tensor) -> Tensor:
    """1 for each frame that holds sound, else 0: [B, T]."""
    return (mel_BFT.abs().amax(dim=1) > 0).to(mel_BFT.dtype)


def normalized(mel_BFT: Tensor, present_BT: Tensor) -> Tensor:
    """Take each band's mean over the utterance away: what a microphone and a voice add to all frames alike."""
    weights = present_BT[:, None, :]
    mean = mel_BFT.sum(dim=2, keepdim=True) / weights.sum(dim=2, keepdim=True).clamp(
        min=1.0
    )  # no sound adds nothing
    return (mel_BFT - mean) * weights


def _halve_presence(present_BT: Tensor) -> Tensor:
    """An output of a strided convolution is present where the frame at its centre is."""
    return present_BT[:, ::2]


class Residual(nn.Module):
    """Two convolutions around a skip (He et al. 2016) in time."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Conv1d(width, width, 3, padding=1, bias=False)
        self.first_norm = nn.BatchNorm1d(width)
        self.second = nn.Conv1d(width, width, 3, padding=1, bias=False)
        self.second_norm = nn.BatchNorm1d(width)

    def forward(self, x_BCS: Tensor, present_BS: Tensor) -> Tensor:
        """[B, C, S] to [B, C, S]."""
        inner = functional.relu(self.first_norm(self.first(x_BCS))) * present_BS[:, None]
        return functional.relu(x_BCS + self.second_norm(self.second(inner))) * present_BS[:, None]


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
        """[B, mels, T] to ([B, S, speech_width], [B, S])."""
        present = presence(mel_BFT)
        x_BCS = normalized(mel_BFT, present)
        for convolution, norm in zip(self.down, self.down_norms, strict=True):
            present = _halve_presence(present)
            x_BCS = functional.relu(norm(convolution(x_BCS))) * present[:, None]
        for residual in self.residuals:
            x_BCS = residual(x_BCS, present)
        return x_BCS.transpose(1, 2), present


class Wav2VecBridge(nn.Module):
    """Convolved frames, a transformer (wav2vec 2.0, Baevski et al. 2020) and a strided bridge to the text model.

    The bridge shortens the sequence as the adapter of wav2vec 2.0 sequence-to-sequence models does.
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
        """[B, mels, T] to ([B, S, speech_width], [B, S])."""
        present = presence(mel_BFT)
        x_BCS = normalized(mel_BFT, present)
        for convolution in (self.first, self.second):
            present = _halve_presence(present)
            x_BCS = functional.gelu(convolution(x_BCS)) * present[:, None]
        x_BSC = x_BCS.transpose(1, 2)
        turn = rotations(x_BSC.shape[1], self.head_width, x_BSC)
        for layer in self.layers:
            x_BSC = layer(x_BSC, hiding_mask(present), turn)
        bridged_BCS = self.bridge((self.norm(x_BSC) * present[:, :, None]).transpose(1, 2))
        return bridged_BCS.transpose(1, 2), _halve_presence(present)


def speech_encoder(config: PhoneConfig) -> nn.Module:
    """The encoder that the config names."""
    return MelCNN(config) if config.speech == "mel-cnn" else Wav2VecBridge(config)
