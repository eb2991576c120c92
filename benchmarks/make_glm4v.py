"""Write a checkpoint of AutoGLM-Phone-9B's class and shape with random weights, for measurements.

    python benchmarks/make_glm4v.py FOLDER [--layers 40] [--tokenizer FOLDER]

40 layers take 20 GB on disk (bfloat16). The tokenizer is copied from another checkpoint, because no
package contains GLM's.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from compressor.models.families.transformers.checkpoint import build_on_meta

VOCABULARY = 151_552
SPECIAL_TOKENS = ("image", "video", "image_start", "image_end", "video_start", "video_end")


def config(layers: int, vocabulary: int = VOCABULARY) -> dict[str, Any]:
    """Return config.json."""
    return {
        "model_type": "glm4v",
        "architectures": ["Glm4vForConditionalGeneration"],
        "dtype": "bfloat16",
        "tie_word_embeddings": False,
        **{
            f"{name}_token_id": vocabulary - 6 + number
            for number, name in enumerate(SPECIAL_TOKENS)
        },
        "text_config": {
            "model_type": "glm4v_text",
            "vocab_size": vocabulary,
            "hidden_size": 4096,
            "intermediate_size": 13_696,
            "num_hidden_layers": layers,
            "num_attention_heads": 32,
            "num_key_value_heads": 2,
            "max_position_embeddings": 65_536,
            "rms_norm_eps": 1e-5,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10_000.0,
                "partial_rotary_factor": 0.5,
                "mrope_section": [8, 12, 12],
            },
        },
        "vision_config": {
            "model_type": "glm4v_vision",
            "depth": 24,
            "hidden_size": 1536,
            "num_heads": 12,
            "out_hidden_size": 4096,
            "intermediate_size": 13_696,
            "image_size": 336,
            "patch_size": 14,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "in_channels": 3,
        },
    }


def shards(names: list[str]) -> Iterator[list[str]]:
    """Yield the tensors of each shard: a decoder layer, the vision tower, or a table."""
    groups: dict[str, list[str]] = {}
    for name in names:
        parts = name.split(".")
        key = "vision" if "visual" in parts else ".".join(parts[:4]) if "layers" in parts else name
        groups.setdefault(key, []).append(name)
    yield from groups.values()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--layers", type=int, default=40)
    parser.add_argument("--tokenizer", type=Path, help="checkpoint whose tokenizer is copied")
    options = parser.parse_args()
    folder: Path = options.folder
    folder.mkdir(parents=True, exist_ok=True)
    tree = config(options.layers)
    (folder / "config.json").write_text(json.dumps(tree, indent=1), encoding="utf-8")
    shapes = {name: value.shape for name, value in build_on_meta(tree).named_parameters()}
    generator = torch.Generator().manual_seed(0)
    groups = list(shards(list(shapes)))
    shard_of: dict[str, str] = {}
    for number, names in enumerate(groups, start=1):
        file = f"model-{number:05d}-of-{len(groups):05d}.safetensors"
        tensors = {}
        for name in names:
            value = torch.empty(shapes[name], dtype=torch.bfloat16)
            is_norm = value.ndim == 1 and "norm" in name
            tensors[name] = (
                value.fill_(1) if is_norm else value.normal_(0, 0.02, generator=generator)
            )
        save_file(tensors, folder / file, metadata={"format": "pt"})
        shard_of |= dict.fromkeys(names, file)
        print(f"shard {number} of {len(groups)}", flush=True)
    index = {
        "metadata": {"total_size": 2 * sum(shape.numel() for shape in shapes.values())},
        "weight_map": shard_of,
    }
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    if options.tokenizer is not None:
        for source in options.tokenizer.glob("*token*.json"):
            shutil.copyfile(source, folder / source.name)


if __name__ == "__main__":
    main()
