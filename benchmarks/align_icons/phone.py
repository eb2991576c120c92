"""Retrieval of icons and names by the alignment that the phone model trains itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from calibration.sources.phone_bed.commands import TOKENS
from calibration.sources.phone_bed.espeak import FRAMES, MELS
from compressor.models.checkpoint.loading import load_module
from compressor.models.families.autoglm_phone.fusion import late_interaction

CELLS, GRID = 9, 3


def products(folder: Path, cells: np.ndarray[Any, Any], texts: list[str]) -> np.ndarray[Any, Any]:
    """Return the scores of icons, uint8 [N, side, side], for written names, [N, names]."""
    module: Any = load_module(folder)
    images = torch.from_numpy(cells)
    padded = torch.cat([images, images[:1].expand(-len(images) % CELLS, -1, -1)])
    tokens = np.zeros((len(texts), TOKENS), np.int64)
    for row, text in zip(tokens, texts, strict=True):
        encoded = np.frombuffer(text.encode(), np.uint8)
        row[: len(encoded)] = encoded.astype(np.int64) + 1
    written = torch.from_numpy(tokens)
    screens = _screens(padded)
    with torch.inference_mode():
        seen = _outputs(module, screens, written[:1].expand(len(screens), -1))["cells"]
        command_BLE = _outputs(module, screens[:1].expand(len(texts), -1, -1, -1), written)[
            "command"
        ]
        valid_BL = (command_BLE != 0).any(dim=-1).float()
        icons_NE = seen.flatten(0, 1)[: len(images)]
        temperature = module.config.temperature
        scores = late_interaction(command_BLE, icons_NE, valid_BL, temperature)
    return scores.T.numpy()


def _screens(cells: Tensor) -> Tensor:
    """Return screens uint8 [S, 3, side, side] of nine cells each."""
    side = cells.shape[-1]
    grid = cells.view(-1, GRID, GRID, side, side).transpose(2, 3)
    return grid.reshape(-1, 1, GRID * side, GRID * side).expand(-1, 3, -1, -1)


def _outputs(module: Any, screens: Tensor, tokens: Tensor) -> dict[str, Tensor]:
    mel = torch.zeros(len(tokens), MELS, FRAMES)
    return dict(module(screen=screens.contiguous(), tokens=tokens, mel=mel))
