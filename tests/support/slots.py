"""Exported decoders with slots, and random adapters for them in PEFT's layout."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from compressor.models.adapters.base import AdapterBase, model_digest, write_base
from tests.support.decoders import export_decoder

PREFIX = "base_model.model."


def export_with_slots(parent: Any, out: Path, *targets: str, **decoder: Any) -> Path:
    """Export a decoder whose linear layers of these names take adapters."""
    slots = {"adapter_slots": targets} if targets else {}
    export_decoder(parent, out, {"parity": {"data": "text"}, "decoder": {**slots, **decoder}})
    return out


def write_random_adapter(base: Path, folder: Path, shapes: dict[str, tuple[int, int]]) -> Path:
    """Write a LoRA of rank 4 and alpha 8 for a base.

    Args:
        base: folder of the base.
        folder: folder to write to.
        shapes: path of each module to its outputs and inputs.
    """
    folder.mkdir(parents=True)
    generator = torch.Generator().manual_seed(len(folder.name))
    tensors = {}
    for name, (outputs, inputs) in shapes.items():
        for part, shape in (("A", (4, inputs)), ("B", (outputs, 4))):
            values = torch.randn(shape, generator=generator) / 4
            tensors[f"{PREFIX}{name}.lora_{part}.weight"] = values
    save_file(tensors, folder / "adapter_model.safetensors")
    targets = sorted({name.rpartition(".")[2] for name in shapes})
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": targets}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    write_base(AdapterBase(artifact=None, digest=model_digest(base), name=str(base)), folder)
    return folder
