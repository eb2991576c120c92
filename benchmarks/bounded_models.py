"""Write the decoders with random weights that `benchmarks/bounded_caches.py` was run on.

    python -m benchmarks.bounded_models FOLDER

FOLDER/window has the heads of Mistral 7B in 2 layers with a window of 1,024 tokens. FOLDER/full,
/half and /all have 10 of SmolLM2-135M's 30 layers and a third of its vocabulary; of the key heads,
none, half and all see 4 first tokens and a window of 256. All are packed to INT4 by `awq`.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from compressor.models.attention_patterns.record import (
    AttentionPattern,
    LocalHeads,
    write_attention_pattern,
)
from tests.support.decoders import FIELDS, export_decoder, pack_decoder, save_decoder

WINDOW: dict[str, Any] = {
    "hidden_size": 1024,
    "intermediate_size": 3584,
    "num_hidden_layers": 2,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 8192,
    "max_position_embeddings": 16384,
    "sliding_window": 1024,
}
MIXED: dict[str, Any] = {
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 10,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "head_dim": 64,
    "vocab_size": 16384,
    "max_position_embeddings": 8448,
    "tie_word_embeddings": True,
}
EXPORT = {**FIELDS, "decoder": {"int8_embeddings": True}, "parity": {"data": "text", "kl": 10.0}}
"""Random weights give nearly even probabilities, which rounded activations change much."""


def local_heads(*heads: int) -> LocalHeads:
    """Return key heads that see 4 first tokens and a window of 256."""
    return LocalHeads(heads=heads, sinks=4, window=256)


def main() -> None:
    """Write the four graphs."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    folder: Path = parser.parse_args().folder
    packed = pack_decoder(
        save_decoder(folder / "float-window", "tiny-mistral", WINDOW),
        folder / "packed-window",
        group_size=64,
    )
    export_decoder(packed, folder / "window", EXPORT)
    packed = pack_decoder(
        save_decoder(folder / "float", "tiny-llama", MIXED), folder / "packed", group_size=64
    )
    layers = range(MIXED["num_hidden_layers"])
    patterns = {
        "full": None,
        "half": tuple(local_heads(0, 2) if layer % 2 else local_heads(1) for layer in layers),
        "all": tuple(local_heads(0, 1, 2) for _ in layers),
    }
    for name, pattern in patterns.items():
        copy = folder / f"packed-{name}"
        shutil.copytree(packed.model, copy)
        if pattern is not None:
            write_attention_pattern(AttentionPattern(layers=pattern), copy)
        parent = SimpleNamespace(model=copy, manifest=packed.manifest)
        export_decoder(parent, folder / name, EXPORT)


if __name__ == "__main__":
    main()
