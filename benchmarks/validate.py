"""Time `validate` on a checkpoint of 9.4 billion parameters (18.8 GB, sparse files of zeros).

    python benchmarks/validate.py [--rounds 7] [--before CHECKOUT]

With `--before`, another checkout of this project is timed in the same rounds, in random order, with
this environment's packages. Printed are median and range, and the processes' peak memory.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tokenizers import Tokenizer, models

from compressor.models.families.transformers.expected_tensors import expected_shapes
from compressor.models.families.transformers.family import Transformers

ROOT = Path(__file__).resolve().parent.parent
SIZES = {
    "hidden_size": 4096,
    "intermediate_size": 13696,
    "num_hidden_layers": 40,
    "num_attention_heads": 32,
    "num_key_value_heads": 2,
    "head_dim": 128,
    "vocab_size": 151552,
    "pad_token_id": 151329,
    "dtype": "bfloat16",
}
"""Those of GLM-4-9B."""
PIPELINE = """\
version: 1
name: nine
model: {path: model, measure: false}
data:
  calibration: {source: text, path: text.txt, tokenizer: model}
passes:
  - {type: awq, format: compressed-tensors}
  - {type: export-onnx, parity: {data: calibration}}
"""


def write_inputs(folder: Path) -> Path:
    """Write the checkpoint, a tokenizer, a text and the pipeline; return the pipeline's file."""
    tree = {**Transformers.presets["tiny-glm4"].tree, **SIZES}
    (folder / "model").mkdir()
    (folder / "model" / "config.json").write_text(json.dumps(tree), encoding="utf-8")
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in expected_shapes(tree).items():
        start, end = end, end + 2 * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    with (folder / "model" / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
    vocabulary = {str(number): number for number in range(SIZES["vocab_size"])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="0"))
    tokenizer.save(str(folder / "model" / "tokenizer.json"))
    (folder / "text.txt").write_text("1 2 3 " * 10_000, encoding="utf-8")
    (folder / "pipeline.yaml").write_text(PIPELINE, encoding="utf-8")
    return folder / "pipeline.yaml"


def time_validate(checkout: Path, pipeline: Path) -> float:
    """Return the seconds of one `validate` by a checkout's code."""
    start = time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", "cli", "validate", str(pipeline)],
        check=True,
        cwd=pipeline.parent,
        env={**os.environ, "PYTHONPATH": str(checkout)},
        stdout=subprocess.DEVNULL,
    )
    return time.perf_counter() - start


def main() -> None:
    """Parse the command line, time both checkouts in random order, and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--before", type=Path)
    arguments = parser.parse_args()
    checkouts = {"now": ROOT, **({"before": arguments.before} if arguments.before else {})}
    seconds: dict[str, list[float]] = {name: [] for name in checkouts}
    with tempfile.TemporaryDirectory() as folder:
        pipeline = write_inputs(Path(folder))
        for _ in range(arguments.rounds):
            for name in random.sample(sorted(checkouts), len(checkouts)):
                seconds[name].append(time_validate(checkouts[name], pipeline))
    for name, values in seconds.items():
        spread = f"{min(values):.2f}–{max(values):.2f}"
        print(f"{name}: {statistics.median(values):.2f} s ({spread})")
    print(f"peak memory: {resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024:.0f} MB")


if __name__ == "__main__":
    main()
