"""Tiny bases of adapters, tokens to train on, and contexts of the ``lora`` pass."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from calibration.sources.arrays import ArrayDataset
from compressor.engine.contract import PassContext
from passes.lora.config import LoraConfig
from passes.lora.step import Lora
from tests.support.tiny_models import CHECKPOINT

TOKENS = (np.arange(12 * 17).reshape(12, 17) * 7) % 90
DATA = ArrayDataset({"input_ids": TOKENS[:, :-1], "label": TOKENS[:, 1:]}, ("input_ids",), "label")
TRAINING = {"steps": 12, "batch_size": 4, "learning_rate": 0.05}


def save_base(folder: Path, preset: str = "tiny-llama", seed: int = 0) -> SimpleNamespace:
    """Save a tiny language model, and return it as an artifact that is found by its path."""
    torch.manual_seed(seed)
    model = folder / "base" / "model"
    model.mkdir(parents=True)
    config = CHECKPOINT.presets[preset]
    CHECKPOINT.save(CHECKPOINT.build(config), config, model)
    return SimpleNamespace(model=model, path=model, name="base", id="ab" * 32)


def lora_context(folder: Path, artifacts: dict[str, Any] | None = None) -> PassContext:
    """Return a context whose only data set is ``DATA``."""
    work = folder / "work"
    work.mkdir(parents=True, exist_ok=True)
    return PassContext(
        artifacts=artifacts or {},
        data=lambda _: DATA,
        work=work,
        seed=0,
        threads=1,
        device="cpu",
        artifact_id="cd" * 32,
        progress=lambda *_: None,
        note=lambda _: None,
    )


def train_lora(base: SimpleNamespace, folder: Path, **fields: Any) -> Path:
    """Run the pass on a base; return the folder of the adapter, which refers to it by path."""
    config = LoraConfig.model_validate({"validation": None, "training": TRAINING, **fields})
    out = folder / "adapter"
    out.mkdir(parents=True)
    context = lora_context(folder)
    Lora().requires(config, base, context)
    Lora().run(config, base, out, context)
    Lora().ensures(config, base, out, context)
    return out
