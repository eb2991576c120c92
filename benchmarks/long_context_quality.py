"""Measure what patterns of attention lose behind long contexts, in torch on a decoder.

    python -m benchmarks.long_context_quality CHECKPOINT TEXT [NAME=FOLDER …] [--length 2048]

CHECKPOINT is a decoder of transformers, TEXT a pattern of text files that no calibration used, and
FOLDER a model with an ``attention_pattern.json`` (`sparse-attention`). The other rows are patterns
by name, and random halves of the key heads as control. Every query follows the pattern.

- KL: from full attention, mean over the 128 tokens before each position.
- copy: loss of the last 127 tokens, which repeat a passage from the beginning of the window.
- fact: loss of a number behind "The code is", planted at depths of the window; mean and worst.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from calibration.sources.text import Text, TextConfig
from compressor.data.contract import SourceContext
from compressor.models.attention_patterns.attention import select_keys
from compressor.models.attention_patterns.masks import (
    BlockGlobalSelection,
    DynamicSelection,
    KeySelection,
    LocalSelection,
)
from compressor.models.attention_patterns.record import read_attention_pattern
from compressor.models.capabilities.attention_heads import AttentionHeads
from compressor.models.checkpoint.description import read_description
from compressor.models.checkpoint.loading import load_module

SINKS, WINDOW, SPAN, PASSAGE = 4, 256, 128, 160
COLUMNS = ("", "copy NLL", "fact NLL (worst)")
Layers = list[KeySelection | None]


def local(heads: AttentionHeads, chosen: Any, sinks: int, window: int) -> LocalSelection:
    """Return the selection in which some key heads see sinks and a window."""
    return LocalSelection.of_key_heads(chosen, heads.key_heads, heads.heads_per_key, sinks, window)


def named_patterns(heads: AttentionHeads) -> dict[str, Layers]:
    """Return the patterns by name, for each layer."""
    generator, total = random.Random(0), heads.layers * heads.key_heads
    chosen = {*generator.sample(range(total), total // 2)}
    by_layer = [
        [head for head in range(heads.key_heads) if layer * heads.key_heads + head in chosen]
        for layer in range(heads.layers)
    ]
    everywhere: dict[str, KeySelection | None] = {
        "full": None,
        "block_global 16, 64": BlockGlobalSelection(16, 64),
        "block_global, sinks, preceding": BlockGlobalSelection(16, 64, SINKS, preceding=True),
        "dynamic 64 + 16": DynamicSelection(64, 16),
        "sinks + window, all heads": local(heads, range(heads.key_heads), SINKS, WINDOW),
    }
    patterns: dict[str, Layers] = {
        name: [selection] * heads.layers for name, selection in everywhere.items()
    }
    patterns["random half of the heads"] = [
        local(heads, layer, SINKS, WINDOW) for layer in by_layer
    ]
    return patterns


def stored_pattern(folder: Path, heads: AttentionHeads) -> Layers:
    """Return the pattern of a model folder."""
    pattern = read_attention_pattern(folder)
    assert pattern is not None, folder
    return [
        None if layer is None else local(heads, layer.heads, layer.sinks, layer.window)
        for layer in pattern.layers
    ]


class Decoder:
    """A decoder in torch whose attention follows a pattern."""

    def __init__(self, folder: Path) -> None:
        description = read_description(folder)
        self.module = load_module(folder).eval()
        heads = description.family.capability(AttentionHeads, description.config)
        assert heads is not None, folder
        self.heads = heads

    def apply(self, layers: Layers) -> None:
        """Let the layers follow a pattern."""
        for name, selection in zip(self.heads.names, layers, strict=True):
            select_keys(self.module.get_submodule(name), selection)

    def log_probabilities(self, ids_T: Any, rows: Any) -> torch.Tensor:
        """Return log-probabilities behind some tokens, [rows, V]."""
        with torch.inference_mode():
            ids, kept = torch.from_numpy(ids_T)[None], torch.as_tensor(rows)
            logits = self.module(input_ids=ids, logits_to_keep=kept, use_cache=False).logits
        return logits[0].float().log_softmax(dim=-1)

    def loss(self, ids_T: Any, last: int) -> float:
        """Return the mean loss of the last tokens."""
        rows = np.arange(len(ids_T) - last - 1, len(ids_T) - 1)
        logs = self.log_probabilities(ids_T, rows)
        return -float(logs[range(last), ids_T[-last:]].mean())


def load_windows(options: argparse.Namespace) -> Any:
    """Return the tokens of the text, int64 [windows, last position]."""
    fields = {
        "source": "text",
        "path": options.text,
        "tokenizer": str(options.checkpoint.resolve()),
        "sequence_length": max(options.positions),
        "num_samples": options.windows,
    }
    samples = Text().load(TextConfig.model_validate(fields), SourceContext(Path.cwd()))
    return samples.batch(np.arange(len(samples)))["input_ids"]


def with_fact(ids_T: Any, depth: float, folder: Path) -> tuple[Any, int]:
    """Return a window with a fact at a depth and its repetition at the end, and its tokens."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    start, number = tokenizer("\nThe code is")["input_ids"], tokenizer(" 48213.")["input_ids"]
    fact = np.array([*start, *number])
    text = ids_T[: len(ids_T) - 2 * len(fact)]
    at = int(depth * len(text))
    return np.concatenate([text[:at], fact, text[at:], fact]), len(number)


def measure(
    decoder: Decoder, windows: Any, references: Mapping[int, Any], options: argparse.Namespace
) -> list[str]:
    """Return the cells of a row."""
    kl = {}
    for position in options.positions:
        rows = np.arange(position - SPAN, position)
        pairs = zip(windows, references[position], strict=True)
        values = [
            (p.exp() * (p - decoder.log_probabilities(w, rows))).sum(-1).mean() for w, p in pairs
        ]
        kl[position] = float(torch.stack(values).mean())
    ids_T = windows[0].copy()
    ids_T[-PASSAGE:] = ids_T[PASSAGE : 2 * PASSAGE]
    facts = [
        decoder.loss(*with_fact(windows[0], depth, options.checkpoint))
        for depth in np.linspace(0, 0.95, options.depths)
    ]
    fact = f"{np.mean(facts):.3f} ({max(facts):.3f})"
    return [*(f"{value:.4f}" for value in kl.values()), f"{decoder.loss(ids_T, 127):.3f}", fact]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("text")
    parser.add_argument("artifacts", nargs="*", metavar="NAME=FOLDER")
    parser.add_argument("--positions", nargs="+", type=int, default=[512, 1024, 2048])
    parser.add_argument("--windows", type=int, default=2)
    parser.add_argument("--depths", type=int, default=10)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    windows = load_windows(options)
    decoder = Decoder(options.checkpoint)
    patterns = named_patterns(decoder.heads)
    for text in options.artifacts:
        name, _, folder = text.partition("=")
        patterns[name] = stored_pattern(Path(folder), decoder.heads)
    positions = [f"KL at {position:,}" for position in options.positions]
    columns = [COLUMNS[0], *positions, *COLUMNS[1:]]
    print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}", flush=True)
    decoder.apply(patterns["full"])
    references = {
        position: [
            decoder.log_probabilities(w, np.arange(position - SPAN, position)) for w in windows
        ]
        for position in options.positions
    }
    for name, layers in patterns.items():
        decoder.apply(layers)
        cells = measure(decoder, windows, references, options)
        print(f"| {' | '.join([name, *cells])} |", flush=True)


if __name__ == "__main__":
    main()
