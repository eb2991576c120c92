"""The whole model: screen and command to the answer, with the states that training looks at.

Shapes: B batch, C cells, L text tokens, F mel bands, T frames, H hidden, E shared width.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

from compressor.models.autoglm_phone.config import ANSWERS, START
from compressor.models.autoglm_phone.fusion import Fusion
from compressor.models.autoglm_phone.speech import speech_encoder
from compressor.models.autoglm_phone.text import TextDecoder, TextEncoder
from compressor.models.autoglm_phone.vision import floats_from_pixels, tiles_from_screen, vision_encoder

if TYPE_CHECKING:
    from collections.abc import Callable

    from compressor.models.autoglm_phone.config import PhoneConfig


class AutoGLMPhoneModel(nn.Module):
    """Which cell of the screen does the command ask for, or none?

    The decoder writes an answer token through the tied embedding; to the tokens of cells a pointer is added (See et al.
    2017): the cosine of command and cell in the space they share.
    """

    def __init__(self, config: PhoneConfig) -> None:
        super().__init__()
        self.config = config
        self.text_encoder = TextEncoder(config)
        self.text_decoder = TextDecoder(config)
        self.vision = vision_encoder(config, config.tile)
        self.speech = speech_encoder(config)
        self.fusion = Fusion(config)
        self.concepts = nn.Parameter(torch.zeros(config.concepts, config.shared))
        nn.init.normal_(self.concepts, std=config.shared**-0.5)

    def _written(self, tokens_BL: Tensor) -> tuple[Tensor, Tensor]:
        embedding = self.text_encoder.embedding
        present_BL = (tokens_BL > 0).to(embedding.weight.dtype)
        return self.text_encoder(embedding(tokens_BL), present_BL), present_BL

    def _spoken(self, mel_BFT: Tensor) -> tuple[Tensor, Tensor]:
        speech_BSV, present_BS = self.speech(mel_BFT)
        return self.text_encoder(self.fusion.spoken(speech_BSV), present_BS), present_BS

    def _encode(self, encode: Callable[[Tensor], tuple[Tensor, Tensor]], command: Tensor) -> tuple[Tensor, Tensor]:
        """States and presence of one kind of command; in training, of those rows only that have it.

        Rows without it come out hidden either way, so that only time, and the batch statistics, differ.
        """
        if self.training:
            rows = command.flatten(1).ne(0).any(dim=1).nonzero()[:, 0]
            if 0 < len(rows) < len(command):
                states, present = encode(command[rows])
                return (
                    states.new_zeros(len(command), *states.shape[1:]).index_copy(0, rows, states),
                    present.new_zeros(len(command), *present.shape[1:]).index_copy(0, rows, present),
                )
        return encode(command)

    def forward(self, screen: Tensor, tokens: Tensor, mel: Tensor) -> dict[str, Tensor]:
        """One answer for each row.

        Args:
            screen: uint8 [B, 3, S, S].
            tokens: int64 [B, L], UTF-8 bytes + 1; 0 pads, and is all there is when the command is spoken.
            mel: float32 [B, mels, T], log-mel; all zeros when the command is written.

        Returns:
            logits [B, C + 1] (cells row by row, then absent), and for training: command [B, E] and cells [B, C, E] of
            length 1 in the shared space, fused [B, H] and answer [B, H].
        """
        config = self.config
        tiles = floats_from_pixels(tiles_from_screen(screen, config.grid))
        cells_BCH = self.fusion.cells(self.vision(tiles).unflatten(0, (-1, config.cells)))
        written, written_present = self._encode(self._written, tokens)
        spoken, spoken_present = self._encode(self._spoken, mel)
        command_BQH = self.fusion.pool(
            torch.cat([written, spoken], dim=1), torch.cat([written_present, spoken_present], dim=1)
        )
        command_BE = functional.normalize(self.fusion.command_space(command_BQH[:, 0]), dim=-1)
        cells_BCE = functional.normalize(self.fusion.cell_space(cells_BCH), dim=-1)
        pointer_BC = (cells_BCE @ command_BE[:, :, None])[:, :, 0] / config.temperature

        fused_BQH = self.fusion(command_BQH, cells_BCH)
        embedding_VH = self.text_encoder.embedding.weight
        start_B1H = embedding_VH[START].expand(screen.shape[0], 1, -1)
        answer_BH = self.text_decoder(start_B1H, torch.cat([fused_BQH, cells_BCH], dim=1))[:, 0]
        written_BA = answer_BH @ embedding_VH[ANSWERS:].T
        logits_BA = written_BA + functional.pad(pointer_BC, (0, 1))
        return {
            "logits": logits_BA,
            "command": command_BE,
            "cells": cells_BCE,
            "fused": fused_BQH[:, 0],
            "answer": answer_BH,
        }
