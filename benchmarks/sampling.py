"""Time the selection of one token, with a sort of the whole vocabulary and without.

    python benchmarks/sampling.py [--rounds 200] [--logits FILE.npy]

The logits fall with 1.5 times the logarithm of the rank, as those of SmolLM2-135M do on English
text (median of 200 positions), in random order and with noise; ``--logits`` reads others,
[positions, vocabulary]. In every round each way selects five tokens from the same logits, in random
order. Printed are the median and, in parentheses, the 5th and 95th percentile, in microseconds of
processor time, which other processes lengthen less than the clock.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from compressor.generation.requests import SamplingOptions
from compressor.generation.token_selection import TokenSelector, Vocabulary
from compressor.models.checkpoint.generation_rules import GenerationRules

Array = np.ndarray[Any, Any]
VOCABULARIES = {49_152: "SmolLM2", 151_936: "Qwen"}
REPEATED = 5
SHAPES = {
    "temperature 0": {},
    "temperature 0, frequency penalty": {"frequency_penalty": 0.2},
    "temperature 0.7, top_p 0.95": {"temperature": 0.7, "top_p": 0.95},
    "temperature 1, top_p 0.95": {"temperature": 1.0, "top_p": 0.95},
    "temperature 1.5, top_p 0.95": {"temperature": 1.5, "top_p": 0.95},
    "temperature 1": {"temperature": 1.0},
    "temperature 1, top_k 50": {"temperature": 1.0, "top_k": 50},
    "temperature 1, min_p 0.05": {"temperature": 1.0, "min_p": 0.05},
}


class FullSort:
    """Nucleus sampling from the sorted vocabulary, as `generate` did it."""

    def __init__(self, options: SamplingOptions) -> None:
        self.options, self.rng = options, np.random.default_rng(options.seed)

    def choose(self, logits_V: Array) -> int:
        if self.options.temperature == 0:
            return int(logits_V.argmax())
        probabilities_V = logits_V.astype(np.float64) / self.options.temperature
        probabilities_V = np.exp(probabilities_V - probabilities_V.max())
        probabilities_V /= probabilities_V.sum()
        order_V = probabilities_V.argsort()[::-1]
        count = int(np.searchsorted(probabilities_V[order_V].cumsum(), self.options.top_p)) + 1
        nucleus = order_V[:count]
        weights = probabilities_V[nucleus]
        return int(self.rng.choice(nucleus, p=weights / weights.sum()))


def made_logits(size: int) -> Iterator[Array]:
    """Yield logits of a new order each time."""
    generator = np.random.default_rng(0)
    falling = -1.5 * np.log(np.arange(1, size + 1))
    while True:
        noisy = generator.permutation(falling) + generator.normal(scale=0.3, size=size)
        yield noisy.astype(np.float32)


def compare(options: SamplingOptions, logits: Iterator[Array], size: int, rounds: int) -> str:
    """Return the times of both ways; of the sort only where it has these options."""
    vocabulary = Vocabulary(size, frozenset({0}), GenerationRules())
    ways: dict[str, Callable[[Array], int]] = {
        "partial": TokenSelector(options, vocabulary, range(256)).choose
    }
    if not (options.top_k or options.min_p or options.frequency_penalty):
        ways["sort"] = FullSort(options).choose
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        logits_V = next(logits)
        for name, choose in random.sample([*ways.items()], len(ways)):
            for _ in range(REPEATED):
                started = time.thread_time()
                choose(logits_V)
                times[name].append((time.thread_time() - started) * 1e6)
    return "  ".join(
        f"{name} {np.median(values):,.0f} ({np.percentile(values, 5):,.0f}"
        f"–{np.percentile(values, 95):,.0f})"
        for name, values in sorted(times.items(), reverse=True)
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--logits", help="logits of a model [positions, vocabulary], .npy")
    arguments = parser.parse_args()
    random.seed(0)
    given = None if arguments.logits is None else np.load(arguments.logits)
    for size in VOCABULARIES if given is None else [given.shape[1]]:
        for name, fields in SHAPES.items():
            options = SamplingOptions(10**9, seed=0, **fields)
            logits = made_logits(size) if given is None else endless(given)
            print(f"{size:>7,}  {name:32}  {compare(options, logits, size, arguments.rounds)}")


def endless(rows: Array) -> Iterator[Array]:
    while True:
        yield from np.random.default_rng(0).permutation(rows)


if __name__ == "__main__":
    main()
