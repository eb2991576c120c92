"""Safetensors files that are no whole model: weights alone, shards, and LoRA adapters."""

from __future__ import annotations

from pathlib import Path

from compressor.errors import ModelError
from compressor.models.checkpoint.safetensors_files import read_header
from compressor.runtimes.foreign.contract import Description, ForeignKind, first_bytes
from compressor.runtimes.tensor_listing import safetensors_tensors

_LORA_PARTS = ("lora_A", "lora_B", "lora_down", "lora_up", "lora_a", "lora_b")


def is_safetensors(path: Path) -> bool:
    """Return True for a file that begins with the length of a JSON header that fits into it."""
    start = first_bytes(path, 9)
    if len(start) < 9:
        return False
    length = int.from_bytes(start[:8], "little")
    return start[8:] == b"{" and 2 <= length <= path.stat().st_size - 8


class _SafetensorsKind(ForeignKind):
    def describe(self, path: Path) -> Description:
        """Return the tensors of the header."""
        return Description(tensors=safetensors_tensors([path]))


class LoraFile(_SafetensorsKind):
    """The matrices of a low-rank adapter, in the names of PEFT, diffusers or kohya."""

    title = "the weights of a LoRA adapter (safetensors), without its adapter_config.json"
    default_remedy = (
        "merge it into its base model in Python: PEFT's `merge_and_unload()`, then "
        "`save_pretrained`"
    )

    def recognizes(self, path: Path) -> bool:
        """Return True where tensors are named as the factors of an adapter."""
        if not is_safetensors(path):
            return False
        try:
            names = [entry.name for entry in read_header(path)]
        except ModelError:
            return False
        return any(part in name for name in names for part in _LORA_PARTS)


class CheckpointPart(_SafetensorsKind):
    """One of the weight files of a folder that has a config.json."""

    title = "a weight file of a checkpoint (safetensors)"

    def recognizes(self, path: Path) -> bool:
        """Return True beside a config.json."""
        return is_safetensors(path) and (path.parent / "config.json").is_file()

    def remedy(self, path: Path) -> str | None:
        """Return the folder to name."""
        return f"name the folder of the checkpoint: {path.parent}"


class SafetensorsFile(_SafetensorsKind):
    """Weights without a description of the model that they belong to."""

    title = "a safetensors file: weights without the config.json that describes their model"
    default_remedy = (
        "put the config.json of its model beside it, name the weights model.safetensors, "
        "and name the folder"
    )

    def recognizes(self, path: Path) -> bool:
        """Return True for a safetensors header."""
        return is_safetensors(path)
