"""How fast language models answer on this CPU, and how well: ours beside torch, onnxruntime-genai, llama.cpp, MNN.

    python benchmarks/decode.py PARENT TEXT NAME=KIND:PATH[@PYTHON] …

PARENT is the float checkpoint that perplexity and KL are told against, TEXT a pattern of text files. An engine is
``int4=ours:ARTIFACT/model``, ``fast=ours-fast-prompts:ARTIFACT/model``, ``torch=torch:CHECKPOINT``,
``genai=genai:FOLDER@VENV/bin/python``, ``q4_0=llama.cpp:FILE.gguf@VENV/bin/python`` or ``mnn=mnn:FOLDER@VENV/bin/python``;
each runs in a process of its own. In every round each engine, in a random order and after a rest, reads a prompt of 64 and one
of 512 tokens and says 128 more; medians and ranges over the rounds, and how many times as fast each of ours is as each other
one, round by round. The share of the machine's memory bandwidth is that of the file's bytes times the tokens of a second; a
prompt's tokens by its tokens a second is the time to the first token.

How the peers' models are made of PARENT (each in a virtual environment of its own, whose ``site-packages`` has a ``.pth`` file
with the path of this one's, for torch and transformers):

    pip install llama-cpp-python==0.3.36 && python benchmarks/decode_worker.py requantize FROM.gguf Q4_0.gguf
    pip install onnxruntime-genai==0.18.0 && python -m onnxruntime_genai.models.builder -m PARENT -o FOLDER -p int4 -e cpu \
        -c CACHE --extra_options int4_block_size=32 int4_accuracy_level=4
    pip install MNN==3.6.1 && pip install --no-deps llmexport==0.0.5 yaspin termcolor sentencepiece tiktoken
    cd .../site-packages/llmexport && python llmexport.py --path PARENT --export mnn --quant_bit 4 --quant_block 32 \
        --dst_path FOLDER
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from calibration.sources.text import Text, TextConfig
from compressor.data.contract import SourceContext

MEASURED = ((64, "decode"), (512, "decode"), (64, "prefill"), (512, "prefill"))
REST_SECONDS = 0.2
"""Before an engine's turn: the threads of the one before may spin for 50 ms more, as long as a short prompt takes."""
WORKER = Path(__file__).with_name("decode_worker.py")


class Engine:
    """A worker, and what it told."""

    def __init__(self, text: str, threads: int) -> None:
        self.name, _, rest = text.partition("=")
        kind, _, rest = rest.partition(":")
        self.ours = kind.startswith("ours")
        path, _, python = rest.partition("@")
        self.path = Path(path)
        self.process = subprocess.Popen(
            [python or sys.executable, str(WORKER), kind, path, str(threads)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self.opened_seconds = self.answer()["opened"]
        self.told: dict[tuple[int, str], list[float]] = {}
        self.peak = 0.0

    def answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            sys.exit(f"{self.name} has ended")
        found: dict[str, Any] = json.loads(line)
        return found

    def ask(self, **command: Any) -> dict[str, Any]:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(command) + "\n")
        self.process.stdin.flush()
        return self.answer()

    @property
    def size(self) -> int:
        """Of the weights."""
        kinds = ("*.onnx*", "*.safetensors", "llm.mnn", "*.weight")
        files = (
            [self.path]
            if self.path.is_file()
            else [file for kind in kinds for file in self.path.glob(kind)]
        )
        return sum(file.stat().st_size for file in files)


def bandwidth(threads: int) -> float:
    """Bytes a second that this machine reads, the best of some sums over 1 GB."""
    import torch

    torch.set_num_threads(threads)
    values = torch.ones(1 << 28)
    seconds = []
    for _ in range(5):
        begun = time.perf_counter()
        values.sum()
        seconds.append(time.perf_counter() - begun)
    return values.numel() * 4 / min(seconds)


def quality(
    engine: Engine, parent: Engine, windows: np.ndarray[Any, Any], folder: Path
) -> tuple[float, float, float]:
    """Perplexity, KL against the parent, and how often both say the same."""
    losses, divergences, same = [], [], []
    for ids in windows.tolist():
        logs = []
        for number, one in enumerate((parent, engine)):
            file = folder / f"{number}.npy"
            one.ask(ids=ids, scores=str(file))
            scores = np.load(file).astype(np.float64)
            scores -= scores.max(axis=1, keepdims=True)
            logs.append(scores - np.log(np.exp(scores).sum(axis=1, keepdims=True)))
        p, q = logs
        losses.append(-q[np.arange(len(ids) - 1), ids[1:]].mean())
        divergences.append((np.exp(p) * (p - q)).sum(axis=1).mean())
        same.append((p.argmax(axis=1) == q.argmax(axis=1)).mean())
    return float(np.exp(np.mean(losses))), float(np.mean(divergences)), float(np.mean(same))


def spread(values: list[float]) -> str:
    return f"{statistics.median(values):.0f} ({min(values):.0f}–{max(values):.0f})"


def ratio(one: Engine, other: Engine, key: tuple[int, str]) -> str:
    """How many times as fast, in the same rounds."""
    found = [mine / theirs for mine, theirs in zip(one.told[key], other.told[key], strict=True)]
    return f"×{statistics.median(found):.2f} ({min(found):.2f}–{max(found):.2f})"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parent", type=Path)
    parser.add_argument("text")
    parser.add_argument("engines", nargs="+", metavar="NAME=KIND:PATH[@PYTHON]")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--new", type=int, default=128)
    parser.add_argument(
        "--windows", type=int, default=8, help="of 256 tokens, for perplexity and KL"
    )
    options = parser.parse_args()
    source = {"source": "text", "path": options.text, "tokenizer": str(options.parent.resolve())}
    samples = Text().load(
        TextConfig.model_validate(
            {**source, "sequence_length": 256, "num_samples": options.windows}
        ),
        SourceContext(Path.cwd()),
    )
    windows = samples.batch(np.arange(len(samples)))["input_ids"]
    prompt = windows.ravel()
    reads = bandwidth(options.threads)
    engines = [Engine(text, options.threads) for text in options.engines]
    for turn in range(options.rounds + 1):
        for engine in random.Random(turn).sample(engines, len(engines)):
            time.sleep(REST_SECONDS)
            for length in (64, 512):
                found = engine.ask(ids=prompt[:length].tolist(), new=options.new)
                engine.peak = max(engine.peak, found["peak"])
                for what in ("prefill", "decode") if turn else ():
                    engine.told.setdefault((length, what), []).append(found[what])
        print(f"round {turn} of {options.rounds}", file=sys.stderr, flush=True)
    print(f"memory reads {reads / 1e9:.1f} GB/s")
    print(
        "| | decode at 64 | at 512 | prefill 64 | 512 | share of bandwidth | opens in s | size MB | peak MB | perplexity "
        "| KL | same |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|---|---|")
    parent = Engine(f"parent=torch:{options.parent}", options.threads)
    with tempfile.TemporaryDirectory() as folder:
        for engine in engines:
            perplexity, divergence, same = quality(engine, parent, windows, Path(folder))
            told = [spread(engine.told[key]) for key in MEASURED]
            sizes = f"{engine.size / 1e6:.0f} | {engine.peak / 1e6:.0f}"
            share = engine.size * statistics.median(engine.told[64, "decode"]) / reads
            print(
                f"| {engine.name} | {' | '.join(told)} | {share:.0%} | {engine.opened_seconds:.1f} | {sizes} "
                f"| {perplexity:.2f} | {divergence:.4f} | {same:.3f} |",
                flush=True,
            )
    for mine in (engine for engine in engines if engine.ours):
        for other in (engine for engine in engines if engine is not mine):
            told = [
                f"{what} {length}: {ratio(mine, other, (length, what))}"
                for length, what in MEASURED
            ]
            print(f"{mine.name} against {other.name}: {', '.join(told)}")


if __name__ == "__main__":
    main()
