"""Checkpoint folders with the irregularities of real ones, and how transformers reads them."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import save_file
from torch import Tensor

from compressor.models.families.transformers.expected_tensors import expected_shapes
from compressor.models.families.transformers.family import Transformers
from compressor.models.families.transformers.layouts import LAYOUTS, decoder_shape

FAMILY = Transformers()
PRESETS = tuple(FAMILY.presets)
HEAD = "lm_head.weight"


@dataclass(slots=True)
class StoredCheckpoint:
    """Config and tensors of a checkpoint before they are written."""

    tree: dict[str, Any]
    tensors: dict[str, Tensor]
    shards: int = 0
    """Number of shards with an index; 0: one file without."""
    other_files: dict[str, bytes] = field(default_factory=dict)

    @property
    def embedding(self) -> str:
        """Name of the embedding's weight in the class."""
        return f"{LAYOUTS[self.tree['model_type']].root}.embed_tokens.weight"

    def write(self, folder: Path) -> Path:
        """Write the checkpoint; equal tensors are written as copies."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text(json.dumps(self.tree))
        tensors = {name: value.clone().contiguous() for name, value in self.tensors.items()}
        if not self.shards:
            save_file(tensors, folder / "model.safetensors", {"format": "pt"})
        else:
            self._write_shards(folder, tensors)
        for name, content in self.other_files.items():
            (folder / name).write_bytes(content)
        return folder

    def _write_shards(self, folder: Path, tensors: dict[str, Tensor]) -> None:
        weight_map = {}
        for number in range(self.shards):
            file = f"model-{number + 1:05d}-of-{self.shards:05d}.safetensors"
            part = {name: tensors[name] for name in sorted(tensors)[number :: self.shards]}
            save_file(part, folder / file, {"format": "pt"})
            weight_map |= dict.fromkeys(part, file)
        index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def stored_checkpoint(preset: str, seed: int = 0, **fields: Any) -> StoredCheckpoint:
    """Return a checkpoint with random weights, its head stored only if it is not tied."""
    config = FAMILY.presets[preset]
    tree = {**config.tree, **fields}
    torch.manual_seed(seed)
    state = {name: value.clone() for name, value in FAMILY.build(config).state_dict().items()}
    if decoder_shape(tree).tied:
        state.pop(HEAD, None)
    return StoredCheckpoint(tree, state)


def read_by_transformers(folder: Path) -> dict[str, Tensor] | None:
    """Return the state that ``from_pretrained`` reads; None if anything does not fit."""
    tree = json.loads((folder / "config.json").read_bytes())
    nullable = ("architectures", "quantization_config")
    fields = {k: v for k, v in tree.items() if v is not None or k not in nullable}
    model_class = getattr(transformers, LAYOUTS[tree["model_type"]].architecture)
    config = transformers.AutoConfig.for_model(**fields)
    module, info = model_class.from_pretrained(
        folder,
        config=config,
        dtype="auto",
        use_safetensors=True,
        local_files_only=True,
        ignore_mismatched_sizes=True,
        output_loading_info=True,
    )
    if info["missing_keys"] or info["unexpected_keys"] or info["mismatched_keys"]:
        return None
    state: dict[str, Tensor] = module.state_dict()
    return state


def write_sparse_checkpoint(tree: dict[str, Any], folder: Path) -> Path:
    """Write a checkpoint of zeros in bfloat16 as sparse files, which take no room on the disk."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(tree))
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in expected_shapes(tree).items():
        start, end = end, end + 2 * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
    return folder
