"""The whole model: screen and command to the answer, with the hidden states that training uses.

Shapes: B commands, S screens, C cells, L positions of a command, F mel bands, T frames, H hidden,
E width of the shared space, A answers, P concepts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

from compressor.models.families.autoglm_phone.config import ANSWERS, START
from compressor.models.families.autoglm_phone.fusion import Fusion, late_interaction
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
    """Predict the cell of the screen that a command refers to, or its absence.

    The decoder generates one answer token through the tied embedding. To the logits of the cells
    it adds a pointer (See et al. 2017): the late interaction of command and cell.
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

    def _encode_text(self, tokens_BL: Tensor) -> tuple[Tensor, Tensor]:
        embedding = self.text_encoder.embedding
        valid_BL = (tokens_BL > 0).to(embedding.weight.dtype)
        return self.text_encoder(embedding(tokens_BL), valid_BL), valid_BL

    def _encode_speech(self, mel_BFT: Tensor) -> tuple[Tensor, Tensor]:
        speech_BSV, valid_BS = self.speech(mel_BFT)
        return self.text_encoder(self.fusion.project_speech(speech_BSV), valid_BS), valid_BS

    def _encode(
        self, encode: Callable[[Tensor], tuple[Tensor, Tensor]], command: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return states and valid positions of one kind of command.

        In training, only the rows with a command of this kind are encoded. The others are masked
        either way: skipping them changes the time and the batch statistics alone.
        """
        if self.training:
            rows = command.flatten(1).ne(0).any(dim=1).nonzero()[:, 0]
            if 0 < len(rows) < len(command):
                states, valid = encode(command[rows])
                return _scatter(states, rows, len(command)), _scatter(valid, rows, len(command))
        return encode(command)

    def forward(self, screen: Tensor, tokens: Tensor, mel: Tensor) -> dict[str, Tensor]:
        """Return one answer per command.

        Args:
            screen: uint8 [B, 3, side, side]; or [S, 3, side, side] with S < B, where each screen
                belongs to the next ⌈B/S⌉ commands.
            tokens: int64 [B, L], UTF-8 bytes + 1; 0 is padding, and all 0 if the command is spoken.
            mel: float32 [B, mels, T], log-mel frames; all 0 if the command is written.

        Returns:
            ``logits`` [B, C + 1], cells row by row and then *absent*. For training: ``command``
            [B, L, E] and ``cells`` [S, C, E] in the shared space, of length 1 (0 where the command
            has no position); ``fused`` [B, H] and ``answer`` [B, H].
        """
        config = self.config
        tiles = floats_from_pixels(tiles_from_screen(screen, config.grid), config)
        cells_SCH = self.fusion.project_cells(self.vision(tiles).unflatten(0, (-1, config.cells)))
        written, written_valid = self._encode(self._encode_text, tokens)
        spoken, spoken_valid = self._encode(self._encode_speech, mel)
        states_BLH = torch.cat([written, spoken], dim=1)
        valid_BL = torch.cat([written_valid, spoken_valid], dim=1)
        command_BLE = (
            functional.normalize(self.fusion.command_space(states_BLH), dim=-1)
            * valid_BL[:, :, None]
        )
        cells_SCE = functional.normalize(self.fusion.cell_space(cells_SCH), dim=-1)
        cells_BCH, cells_BCE = (
            _repeat_for_commands(cells_SCH, tokens),
            _repeat_for_commands(cells_SCE, tokens),
        )
        pointer_BC = late_interaction(command_BLE, cells_BCE, valid_BL, config.temperature)

        fused_BQH = self.fusion(self.fusion.pool(states_BLH, valid_BL), cells_BCH)
        embedding_VH = self.text_encoder.embedding.weight
        start_B1H = embedding_VH[START].expand(tokens.shape[0], 1, -1)
        answer_BH = self.text_decoder(start_B1H, torch.cat([fused_BQH, cells_BCH], dim=1))[:, 0]
        generated_BA = answer_BH @ embedding_VH[ANSWERS:].T
        logits_BA = generated_BA + functional.pad(pointer_BC, (0, 1))
        return {
            "logits": logits_BA,
            "command": command_BLE,
            "cells": cells_SCE,
            "fused": fused_BQH[:, 0],
            "answer": answer_BH,
        }

    def concept_logits(self, outputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the logits of the P concepts for commands and cells.

        ``concept`` [B, P] and ``cell_concepts`` [S, C, P] have labels. ``position_concepts``
        [valid positions, P] has none: a student learns from a teacher at which position a command
        names its concept.
        """
        prototypes_PE = functional.normalize(self.concepts, dim=-1)
        command_BLE, temperature = outputs["command"], self.config.temperature
        valid_BL = (command_BLE.detach() != 0).any(dim=-1).to(command_BLE.dtype)
        return {
            "concept": late_interaction(command_BLE, prototypes_PE, valid_BL, temperature),
            "cell_concepts": outputs["cells"] @ prototypes_PE.T / temperature,
            "position_concepts": command_BLE[valid_BL > 0] @ prototypes_PE.T / temperature,
        }


def _scatter(values: Tensor, rows: Tensor, count: int) -> Tensor:
    """Return ``count`` rows: ``values`` at the indices ``rows``, and zeros elsewhere."""
    return values.new_zeros(count, *values.shape[1:]).index_copy(0, rows, values)


def _repeat_for_commands(values_SX: Tensor, commands: Tensor) -> Tensor:
    """Repeat each screen's values for its ⌈B/S⌉ commands: [S, ...] to [B, ...]."""
    screens, count = values_SX.shape[0], commands.shape[0]
    if screens == count:
        return values_SX
    return values_SX.repeat_interleave(-(-count // screens), dim=0)[:count]
