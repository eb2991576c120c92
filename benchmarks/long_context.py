"""Measure decoders behind long contexts: time, memory, and recall of the beginning.

    python -m benchmarks.long_context speed NAME=FOLDER … [--lengths 512 2048 8192] [--prompt 4096]

``speed``: each folder of `export-onnx` runs in a process of its own, in turns and in
random order. Behind each length, whose keys and values are random, single tokens are decoded; with
`--prompt`, so many tokens are read too. Times are those of the processor for one thread, and of
the clock for several. Ratios are to the first engine, round by round: medians and ranges.
"""

from __future__ import annotations

import argparse
import multiprocessing
import random
import resource
import statistics
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

MB = 1e6
SPARE_ROWS = 32
"""Positions behind the last token, so that the heads of every token are stacked."""


class OnnxEngine:
    """A decoder in ONNX Runtime."""

    def __init__(self, folder: Path, threads: int, capacity: int, *, fast_prompts: bool) -> None:
        from compressor.runtimes.onnxruntime.decoder.decoder import OnnxDecoder

        self.decoder = OnnxDecoder(
            folder, threads, capacity=capacity, huge_pages=True, fast_prompts=fast_prompts
        )
        self.cache = self.decoder._cache  # a prompt of 16,384 tokens would take minutes
        generator = np.random.default_rng(0)
        for array in self.cache.state.buffers.values():
            values = generator.standard_normal(array.shape[-2:], dtype=np.float32)
            array[...] = np.clip(64 * values, -127, 127) if array.dtype == np.int8 else values

    def decode(self, length: int, steps: int) -> None:
        """Decode tokens behind a context of a length."""
        self.decoder.reset()
        self.cache.append(np.array([length]), length, length)
        for step in range(steps):
            self.decoder.forward(np.array([[step + 5]]))

    def prompt(self, ids_T: Any) -> None:
        """Read a prompt."""
        self.decoder.reset()
        self.decoder.forward(ids_T[None])

    @property
    def cache_bytes(self) -> int:
        """Bytes of keys and values at the capacity."""
        return sum(array.nbytes for array in self.cache.state.buffers.values())


def serve(pipe: Connection, path: Path, options: argparse.Namespace) -> None:
    """Run the commands of the parent process: the worker of one engine."""
    capacity = max(*options.lengths, options.prompt) + options.steps + SPARE_ROWS
    engine = OnnxEngine(path, options.threads, capacity, fast_prompts=options.fast_prompts)
    ids_T = np.random.default_rng(0).integers(5, 10_000, max(options.prompt, 1))
    clock = time.process_time if options.threads == 1 else time.perf_counter
    pipe.send(engine.cache_bytes)
    while (length := pipe.recv()) is not None:
        start = clock()
        if length:
            engine.decode(length, options.steps)
        else:
            engine.prompt(ids_T)
        seconds = clock() - start
        peak_bytes = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        pipe.send((seconds / (options.steps if length else 1), peak_bytes))


class Engine:
    """A worker process and its measurements."""

    def __init__(self, text: str, options: argparse.Namespace) -> None:
        self.name, _, path = text.partition("=")
        context = multiprocessing.get_context("spawn")
        self.pipe, other = context.Pipe()
        arguments = (other, Path(path), options)
        self.process = context.Process(target=serve, args=arguments, daemon=True)
        self.process.start()
        self.cache_bytes: int = self.pipe.recv()
        self.seconds: dict[int, list[float]] = {}
        """Of each round, by length; 0 is the prompt."""
        self.peak_bytes = 0

    def measure(self, length: int, *, keep: bool) -> None:
        """Measure one round."""
        self.pipe.send(length)
        seconds, self.peak_bytes = self.pipe.recv()
        if keep:
            self.seconds.setdefault(length, []).append(seconds)

    def cell(self, length: int, first: Engine) -> str:
        """Return milliseconds, and the ratio to the first engine with its range."""
        own, others = self.seconds[length], first.seconds[length]
        ratios = [a / b for a, b in zip(own, others, strict=True)]
        median = f"{1000 * statistics.median(own):.4g} ms"
        if self is first:
            return median
        spread = f"{min(ratios):.2f}–{max(ratios):.2f}"
        return f"{median}, ×{statistics.median(ratios):.2f} ({spread})"


def print_speed(engines: Sequence[Engine], lengths: Sequence[int]) -> None:
    """Print a row for each engine."""
    names = [f"behind {length:,}" if length else "prompt" for length in lengths]
    columns = ["", *names, "KV cache MB", "peak MB"]
    print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    for engine in engines:
        cells = [engine.cell(length, engines[0]) for length in lengths]
        sizes = [f"{value / MB:.0f}" for value in (engine.cache_bytes, engine.peak_bytes)]
        print(f"| {' | '.join([engine.name, *cells, *sizes])} |", flush=True)


def measure_speed(options: argparse.Namespace) -> None:
    """Run all rounds; round 0 of each length warms up."""
    engines = [Engine(text, options) for text in options.engines]
    lengths = [*options.lengths, *([0] if options.prompt else [])]
    for length in lengths:
        for round_ in range(options.rounds + 1):
            for engine in random.Random(round_).sample(engines, len(engines)):
                engine.measure(length, keep=round_ > 0)
    print_speed(engines, lengths)
    for engine in engines:
        engine.pipe.send(None)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True)
    speed = commands.add_parser("speed")
    speed.add_argument("engines", nargs="+", metavar="NAME=FOLDER")
    speed.add_argument("--lengths", nargs="*", type=int, default=[512, 2048, 8192])
    speed.add_argument("--prompt", type=int, default=0, help="tokens of a prompt")
    speed.add_argument("--threads", type=int, default=1)
    speed.add_argument("--rounds", type=int, default=5)
    speed.add_argument("--steps", type=int, default=8, help="tokens of a round")
    speed.add_argument("--fast-prompts", action="store_true")
    speed.set_defaults(run=measure_speed)
    options = parser.parse_args()
    options.run(options)


if __name__ == "__main__":
    main()
