"""Time of a decoding step behind long contexts, with bounded caches and with whole ones.

    python benchmarks/bounded_caches.py NAME=ARTIFACT/model [NAME=ARTIFACT/model=whole …]

``=whole`` keeps all positions in every cache. In each round every decoder, in random order, runs
some steps behind each context; printed are the bytes of its cache, the median speed, and for each
but the first the median and range over the rounds of its speed relative to the first. Caches are
filled with random numbers instead of a prompt: the time of a step does not depend on them.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import time
from pathlib import Path

import numpy as np

from compressor.runtimes.onnxruntime.decoder.cache import CacheState
from compressor.runtimes.onnxruntime.decoder.decoder import OnnxDecoder

WARM_STEPS, TIMED_STEPS = 2, 14


def opened(text: str, capacity: int) -> tuple[str, OnnxDecoder]:
    """Return the name and the decoder of an argument, its cache full of random numbers."""
    name, path, *options = text.split("=")
    decoder = OnnxDecoder(Path(path), 1, capacity=capacity, drops_positions=options != ["whole"])
    generator = np.random.default_rng(0)
    for array in decoder._cache.state.buffers.values():
        array[:] = (0.1 * generator.standard_normal(array.shape)).astype(array.dtype)
    return name, decoder


def fill(decoder: OnnxDecoder, tokens: int) -> None:
    """Set the length of the sequence, and what bounded caches have dropped of it."""
    cache = decoder._cache
    cache.state = CacheState(np.array([tokens]), cache.state.mask_BP, cache.state.buffers)
    for bound in cache.layout.bounds:
        cache._dropped.inputs[bound.input_name][:] = max(tokens - bound.kept, 0)


def seconds_per_step(decoder: OnnxDecoder) -> float:
    """Return the time of one token."""
    token = np.array([[7]])
    for _ in range(WARM_STEPS):
        decoder.forward(token)
    started = time.perf_counter()
    for _ in range(TIMED_STEPS):
        decoder.forward(token)
    return (time.perf_counter() - started) / TIMED_STEPS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("decoders", nargs="+")
    parser.add_argument("--contexts", default="512,2048,4096,8192")
    parser.add_argument("--rounds", type=int, default=9)
    arguments = parser.parse_args()
    contexts = [int(text) for text in arguments.contexts.split(",")]
    steps = arguments.rounds * (WARM_STEPS + TIMED_STEPS)
    decoders = dict(opened(text, max(contexts) + steps) for text in arguments.decoders)
    for name, decoder in decoders.items():
        size = sum(array.nbytes for array in decoder._cache.state.buffers.values())
        print(f"{name}: {size / 1e6:.1f} MB of keys and values")
    for context in contexts:
        times: dict[str, list[float]] = {name: [] for name in decoders}
        for decoder in decoders.values():
            fill(decoder, context)
        for _ in range(arguments.rounds):
            for name in random.sample(list(decoders), len(decoders)):
                times[name].append(seconds_per_step(decoders[name]))
        first, *others = times
        print(f"{context}: {first} {1 / statistics.median(times[first]):.1f} tokens/s", end="")
        for name in others:
            ratios = [a / b for a, b in zip(times[first], times[name], strict=True)]
            median, low, high = statistics.median(ratios), min(ratios), max(ratios)
            print(f", {name} ×{median:.2f} ({low:.2f}–{high:.2f})", end="")
        print(f"  [load {os.getloadavg()[0]:.0f}]", flush=True)


if __name__ == "__main__":
    main()
