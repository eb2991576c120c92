"""Compare decode speed and quality with torch, onnxruntime-genai, llama.cpp and MNN on this CPU.

    python benchmarks/decode.py PARENT TEXT NAME=KIND:PATH[@PYTHON] …

PARENT is the float checkpoint for perplexity and KL, TEXT a pattern of text files. An engine is
``int4=ours:ARTIFACT/model``, ``fast=ours-fast-prompts:ARTIFACT/model``, ``torch=torch:CHECKPOINT``,
``genai=genai:FOLDER@VENV/bin/python``, ``q4_0=llama.cpp:FILE.gguf@VENV/bin/python`` or
``mnn=mnn:FOLDER@VENV/bin/python``; each runs in its own process. In every round each engine, in
random order and after a pause, reads a prompt of 64 and one of 512 tokens and generates 128 more.
Printed are medians and ranges over the rounds, and the speed of each of our engines relative to
each other engine, round by round. The share of the memory bandwidth is the file size times the
tokens per second. The time to the first token is a prompt's tokens divided by its speed.

Commands that make the peers' models from PARENT (each in its own virtual environment, whose
``site-packages`` has a ``.pth`` file with the path of this one's, for torch and transformers):

    pip install llama-cpp-python==0.3.36
    python benchmarks/decode_worker.py requantize FROM.gguf Q4_0.gguf
    pip install onnxruntime-genai==0.18.0
    python -m onnxruntime_genai.models.builder -m PARENT -o FOLDER -p int4 -e cpu -c CACHE \
        --extra_options int4_block_size=32 int4_accuracy_level=4
    pip install MNN==3.6.1
    pip install --no-deps llmexport==0.0.5 yaspin termcolor sentencepiece tiktoken
    cd .../site-packages/llmexport
    python llmexport.py --path PARENT --export mnn --quant_bit 4 --quant_block 32 --dst_path FOLDER
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
COLUMNS = (
    *("name", "decode at 64", "at 512", "prefill 64", "512", "share of bandwidth", "opens in s"),
    *("size MB", "peak MB", "perplexity", "KL", "agreement"),
)
REST_SECONDS = 0.2
"""Pause before an engine runs.

Threads of the previous engine may spin for 50 ms, as long as a short prompt takes.
"""
WORKER = Path(__file__).with_name("decode_worker.py")


class Engine:
    """A worker process and its measurements."""

    def __init__(self, text: str, threads: int) -> None:
        self.name, _, rest = text.partition("=")
        kind, _, rest = rest.partition(":")
        self.is_ours = kind.startswith("ours")
        path, _, python = rest.partition("@")
        self.path = Path(path)
        self.process = subprocess.Popen(
            [python or sys.executable, str(WORKER), kind, path, str(threads)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self.opening_seconds = self.read_answer()["opened"]
        self.speeds: dict[tuple[int, str], list[float]] = {}
        """Tokens per second of each round, by prompt length and phase."""
        self.peak_bytes = 0.0

    def read_answer(self) -> dict[str, Any]:
        """Return the next line of the worker."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            sys.exit(f"{self.name} has ended")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def request(self, **command: Any) -> dict[str, Any]:
        """Send a command to the worker and return its answer."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(command) + "\n")
        self.process.stdin.flush()
        return self.read_answer()

    @property
    def size(self) -> int:
        """Bytes of the weight files."""
        patterns = ("*.onnx*", "*.safetensors", "llm.mnn", "*.weight")
        files = (
            [self.path]
            if self.path.is_file()
            else [file for pattern in patterns for file in self.path.glob(pattern)]
        )
        return sum(file.stat().st_size for file in files)


def bandwidth(threads: int) -> float:
    """Return the bytes per second that this machine reads: the best of five sums over 1 GB."""
    import torch

    torch.set_num_threads(threads)
    values = torch.ones(1 << 28)
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        values.sum()
        seconds.append(time.perf_counter() - start)
    return values.numel() * 4 / min(seconds)


def quality(
    engine: Engine, parent: Engine, windows: np.ndarray[Any, Any], folder: Path
) -> tuple[float, float, float]:
    """Return perplexity, KL from the parent, and the agreement of the top tokens."""
    losses, divergences, agreements = [], [], []
    for ids in windows.tolist():
        logs = []
        for number, model in enumerate((parent, engine)):
            file = folder / f"{number}.npy"
            model.request(ids=ids, logits=str(file))
            logits = np.load(file).astype(np.float64)
            logits -= logits.max(axis=1, keepdims=True)
            logs.append(logits - np.log(np.exp(logits).sum(axis=1, keepdims=True)))
        p, q = logs
        losses.append(-q[np.arange(len(ids) - 1), ids[1:]].mean())
        divergences.append((np.exp(p) * (p - q)).sum(axis=1).mean())
        agreements.append((p.argmax(axis=1) == q.argmax(axis=1)).mean())
    return float(np.exp(np.mean(losses))), float(np.mean(divergences)), float(np.mean(agreements))


def format_spread(values: list[float]) -> str:
    """Return median and range."""
    return f"{statistics.median(values):.0f} ({min(values):.0f}–{max(values):.0f})"


def format_ratio(engine: Engine, peer: Engine, key: tuple[int, str]) -> str:
    """Return median and range of the speed relative to a peer, over the same rounds."""
    pairs = zip(engine.speeds[key], peer.speeds[key], strict=True)
    ratios = [speed / peer_speed for speed, peer_speed in pairs]
    return f"×{statistics.median(ratios):.2f} ({min(ratios):.2f}–{max(ratios):.2f})"


def load_windows(options: argparse.Namespace) -> np.ndarray[Any, Any]:
    """Return the tokens of the text, int64 [windows, 256]."""
    fields = {
        "source": "text",
        "path": options.text,
        "tokenizer": str(options.parent.resolve()),
        "sequence_length": 256,
        "num_samples": options.windows,
    }
    samples = Text().load(TextConfig.model_validate(fields), SourceContext(Path.cwd()))
    return samples.batch(np.arange(len(samples)))["input_ids"]


def measure_speed(engines: list[Engine], prompt: list[int], options: argparse.Namespace) -> None:
    """Run all rounds; round 0 warms up."""
    for round_ in range(options.rounds + 1):
        for engine in random.Random(round_).sample(engines, len(engines)):
            time.sleep(REST_SECONDS)
            for length in (64, 512):
                answer = engine.request(ids=prompt[:length], new=options.new)
                engine.peak_bytes = max(engine.peak_bytes, answer["peak"])
                for phase in ("prefill", "decode") if round_ else ():
                    engine.speeds.setdefault((length, phase), []).append(answer[phase])
        print(f"round {round_} of {options.rounds}", file=sys.stderr, flush=True)


def print_table(
    engines: list[Engine], parent: Engine, windows: np.ndarray[Any, Any], bytes_per_second: float
) -> None:
    """Print speed, memory and quality of each engine as a Markdown table."""
    print(f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}")
    with tempfile.TemporaryDirectory() as folder:
        for engine in engines:
            perplexity, divergence, agreement = quality(engine, parent, windows, Path(folder))
            share = engine.size * statistics.median(engine.speeds[64, "decode"]) / bytes_per_second
            cells = [
                engine.name,
                *(format_spread(engine.speeds[key]) for key in MEASURED),
                f"{share:.0%}",
                f"{engine.opening_seconds:.1f}",
                f"{engine.size / 1e6:.0f}",
                f"{engine.peak_bytes / 1e6:.0f}",
                f"{perplexity:.2f}",
                f"{divergence:.4f}",
                f"{agreement:.3f}",
            ]
            print(f"| {' | '.join(cells)} |", flush=True)


def print_ratios(engines: list[Engine]) -> None:
    """Print the speed of each of our engines relative to each other engine."""
    for engine in (engine for engine in engines if engine.is_ours):
        for peer in (peer for peer in engines if peer is not engine):
            ratios = [
                f"{phase} {length}: {format_ratio(engine, peer, (length, phase))}"
                for length, phase in MEASURED
            ]
            print(f"{engine.name} against {peer.name}: {', '.join(ratios)}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parent", type=Path)
    parser.add_argument("text")
    parser.add_argument("engines", nargs="+", metavar="NAME=KIND:PATH[@PYTHON]")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--new", type=int, default=128, help="tokens to generate")
    parser.add_argument("--windows", type=int, default=8, help="windows of 256 tokens for KL")
    options = parser.parse_args()
    windows = load_windows(options)
    bytes_per_second = bandwidth(options.threads)
    engines = [Engine(text, options.threads) for text in options.engines]
    measure_speed(engines, windows.ravel().tolist(), options)
    print(f"memory reads {bytes_per_second / 1e9:.1f} GB/s")
    parent = Engine(f"parent=torch:{options.parent}", options.threads)
    print_table(engines, parent, windows, bytes_per_second)
    print_ratios(engines)


if __name__ == "__main__":
    main()
