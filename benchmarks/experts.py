"""Compare the graph of experts that is built with the one that is traced, float and packed.

    python -m benchmarks.experts [--rounds 9] [--threads 1]

A mixture with random weights (2 layers, 512 wide, 32 experts 256 wide, 4 for each token) is
exported as float32 and packed in 4 bits, built for ONNX Runtime, built of standard operators, and
traced. In every round each graph, in random order, reads a prompt of 64 tokens and generates 16.
Printed are the medians and ranges over the rounds, the size of the files, and how much memory a
process of its own has more after it opened the graph and ran it.
"""

from __future__ import annotations

import argparse
import random
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import torch
import transformers

from compressor.models.quantized.weight_grid import WeightGrid
from compressor.runtimes.onnxruntime.decoder.decoder import OnnxDecoder
from tests.support.decoders import FIELDS, export_decoder
from tests.support.packed_mixtures import write_packed

PROMPT, GENERATED = 64, 16
PORTABLE = {**FIELDS, "decoder": {"target": "portable"}}
GRAPHS: dict[str, tuple[str, dict[str, Any]]] = {
    "float32, built": ("float", FIELDS),
    "float32, traced": ("float", FIELDS),
    "INT4, built": ("packed", FIELDS),
    "INT4, portable": ("packed", PORTABLE),
    "INT4, traced": ("packed", FIELDS),
}
"""Graph to the checkpoint that it is exported from, and the fields of the step."""
PROGRAM = """
import sys
from pathlib import Path
import numpy as np
from compressor.runtimes.onnxruntime.decoder.decoder import OnnxDecoder
def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 1e6
before = resident()
decoder = OnnxDecoder(Path(sys.argv[1]), 1, capacity=128)
for ids in ([[3] * 8], [[5]]):
    decoder.forward(np.array(ids))
print(resident() - before)
"""


def write_checkpoints(folder: Path) -> None:
    """Write the mixture as floats and packed, into ``packed/float`` and ``packed``."""
    config = transformers.Qwen3MoeConfig(
        vocab_size=512,
        hidden_size=512,
        moe_intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=64,
        num_experts=32,
        num_experts_per_tok=4,
        norm_topk_prob=True,
        max_position_embeddings=512,
        bos_token_id=1,
        eos_token_id=2,
    )
    torch.manual_seed(0)
    model = transformers.Qwen3MoeForCausalLM(config).eval()
    write_packed(model, folder / "packed", WeightGrid(bits=4, group_size=64, symmetric=True))
    (folder / "packed" / "float").rename(folder / "float")


def export(folder: Path, name: str) -> Path:
    """Export one graph, and return its folder."""
    source, fields = GRAPHS[name]
    artifact = SimpleNamespace(
        model=folder / source, manifest=SimpleNamespace(id="ab12", format=source)
    )
    traces = mock.patch("passes.export_onnx.exporters._is_covered", lambda _: False)
    with traces if "traced" in name else nullcontext():
        export_decoder(artifact, folder / name.replace(", ", "-"), fields)
    return folder / name.replace(", ", "-")


def measure(decoder: OnnxDecoder) -> tuple[float, float]:
    """Return the tokens per second of a prompt, and of decoding behind it."""
    ids = np.random.default_rng(0).integers(3, 500, (1, PROMPT + GENERATED))
    decoder.reset()
    start = time.perf_counter()
    decoder.forward(ids[:, :PROMPT])
    prompt_end = time.perf_counter()
    for position in range(PROMPT, PROMPT + GENERATED):
        decoder.forward(ids[:, position : position + 1])
    end = time.perf_counter()
    return PROMPT / (prompt_end - start), GENERATED / (end - prompt_end)


def text(values: list[float]) -> str:
    """Return the median and the range of measured values."""
    return f"{statistics.median(values):,.0f} ({min(values):,.0f}–{max(values):,.0f})"


def main() -> None:
    """Export, measure in turns, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        write_checkpoints(Path(temporary))
        folders = {name: export(Path(temporary), name) for name in GRAPHS}
        memory = {
            name: float(
                subprocess.run(
                    [sys.executable, "-c", PROGRAM, str(folder)],
                    check=True,
                    capture_output=True,
                    text=True,
                ).stdout
            )
            for name, folder in folders.items()
        }
        decoders = {
            name: OnnxDecoder(folder, arguments.threads, capacity=128)
            for name, folder in folders.items()
        }
        speeds: dict[str, list[tuple[float, float]]] = {name: [] for name in GRAPHS}
        for number in range(arguments.rounds + 1):
            for name in random.sample(list(GRAPHS), len(GRAPHS)):
                measured = measure(decoders[name])
                if number:  # the first round warms up
                    speeds[name].append(measured)
        print("| graph | prefill 64, tok/s | decode, tok/s | file, MB | memory, MB |")
        print("|---|---|---|---|---|")
        for name, rounds in speeds.items():
            size = sum(file.stat().st_size for file in folders[name].glob("model.onnx*"))
            prefill, decode = (list(values) for values in zip(*rounds, strict=True))
            cells = [name, text(prefill), text(decode), f"{size / 1e6:.0f}", f"{memory[name]:.0f}"]
            print(f"| {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
