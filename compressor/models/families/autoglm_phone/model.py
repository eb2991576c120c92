"""The whole model: screen and command to the answer, with the states that training looks at.

Shapes: B commands, S screens, C cells, L positions of a command, F mel bands, T frames, H hidden, E shared width.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

from compressor.models.families.autoglm_phone.alignment import late_interaction
from compressor.models.families.autoglm_phone.config import ANSWERS, START
from compressor.models.families.autoglm_phone.fusion import Fusion
from compressor.models.families.autoglm_phone.speech import speech_encoder
from compressor.models.families.autoglm_phone.text import TextDecoder, TextEncoder
from compressor.models.families.autoglm_phone.vision import (
    floats_from_pixels,
    tiles_from_screen,
    vision_encoder,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from compressor.models.families.autoglm_phone.config import PhoneConfig


class AutoGLMPhoneModel(nn.Module):
    """Which cell of the screen does the command ask for, or none?

    The decoder writes an answer token through the tied embedding; to the tokens of cells a pointer is added (See et al.
    2017): how well any position of the command matches the cell in the space they share.
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

    def _encode(
        self, encode: Callable[[Tensor], tuple[Tensor, Tensor]], command: Tensor
    ) -> tuple[Tensor, Tensor]:
        """States and presence of one kind of command; in training, of those rows only that have it.

        Rows without it come out hidden either way, so that only time, and the batch statistics, differ.
        """
        if self.training:
            rows = command.flatten(1).ne(0).any(dim=1).nonzero()[:, 0]
            if 0 < len(rows) < len(command):
                states, present = encode(command[rows])
                return (
                    states.new_zeros(len(command), *states.shape[1:]).index_copy(0, rows, states),
                    present.new_zeros(len(command), *present.shape[1:]).index_copy(
                        0, rows, present
                    ),
                )
        return encode(command)

    def forward(self, screen: Tensor, tokens: Tensor, mel: Tensor) -> dict[str, Tensor]:
        """One answer for each row.

        Args:
            screen: uint8 [B, 3, side, side]; or [S, 3, side, side] with S < B, and each screen is for the next ⌈B/S⌉ commands.
            tokens: int64 [B, L], UTF-8 bytes + 1; 0 pads, and is all there is when the command is spoken.
            mel: float32 [B, mels, T], log-mel; all zeros when the command is written.

        Returns:
            logits [B, C + 1] (cells row by row, then absent), and for training: command [B, L, E] and cells [S, C, E] of
            length 1 in the shared space (0 where the command has no position), fused [B, H] and answer [B, H].
        """
        config = self.config
        tiles = floats_from_pixels(tiles_from_screen(screen, config.grid), config)
        cells_SCH = self.fusion.cells(self.vision(tiles).unflatten(0, (-1, config.cells)))
        written, written_present = self._encode(self._written, tokens)
        spoken, spoken_present = self._encode(self._spoken, mel)
        states_BLH = torch.cat([written, spoken], dim=1)
        present_BL = torch.cat([written_present, spoken_present], dim=1)
        command_BLE = (
            functional.normalize(self.fusion.command_space(states_BLH), dim=-1)
            * present_BL[:, :, None]
        )
        cells_SCE = functional.normalize(self.fusion.cell_space(cells_SCH), dim=-1)
        cells_BCH, cells_BCE = (
            _for_each_command(cells_SCH, tokens),
            _for_each_command(cells_SCE, tokens),
        )
        pointer_BC = late_interaction(command_BLE, cells_BCE, present_BL, config.temperature)

        fused_BQH = self.fusion(self.fusion.pool(states_BLH, present_BL), cells_BCH)
        embedding_VH = self.text_encoder.embedding.weight
        start_B1H = embedding_VH[START].expand(tokens.shape[0], 1, -1)
        answer_BH = self.text_decoder(start_B1H, torch.cat([fused_BQH, cells_BCH], dim=1))[:, 0]
        written_BA = answer_BH @ embedding_VH[ANSWERS:].T
        logits_BA = written_BA + functional.pad(pointer_BC, (0, 1))
        return {
            "logits": logits_BA,
            "command": command_BLE,
            "cells": cells_SCE,
            "fused": fused_BQH[:, 0],
            "answer": answer_BH,
        }

    def concept_logits(self, outputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """How well commands and cells match the P concepts' prototypes.

        ``concept`` [B, P] and ``cell_concepts`` [S, C, P] have labels; ``position_concepts``, [present positions, P], has
        none: it is what a student can learn of a teacher about where in a command a concept is named.
        """
        prototypes_PE = functional.normalize(self.concepts, dim=-1)
        command_BLE, temperature = outputs["command"], self.config.temperature
        present_BL = (command_BLE.detach() != 0).any(dim=-1).to(command_BLE.dtype)
        return {
            "concept": late_interaction(command_BLE, prototypes_PE, present_BL, temperature),
            "cell_concepts": outputs["cells"] @ prototypes_PE.T / temperature,
            "position_concepts": command_BLE[present_BL > 0] @ prototypes_PE.T / temperature,
        }


def _for_each_command(of_screens: Tensor, commands: Tensor) -> Tensor:
    """[S, …] to [B, …]: the same screen for ⌈B/S⌉ commands in a row; as it is where each has its own."""
    screens, count = of_screens.shape[0], commands.shape[0]
    if screens == count:
        return of_screens
    return of_screens.repeat_interleave(-(-count // screens), dim=0)[:count]
