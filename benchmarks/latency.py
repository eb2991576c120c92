"""Measure latency relative to the first artifact, in interleaved rounds, on a noisy machine.

    python benchmarks/latency.py examples/phone/prune.yaml ARTIFACT ARTIFACT … \
        [--rounds 15] [--threads 1] [--batch-size 1]

Each round calls every artifact, in random order, on the same samples of the pipeline's `evaluate:`
set. A ratio compares medians within one round. Printed are median and range of the ratios.
"""

from __future__ import annotations

import argparse
import random
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from compressor.artifacts.artifact import Artifact, open_artifact, verify
from compressor.data.contract import SourceContext
from compressor.engine.plan.pipeline import load_pipeline
from compressor.evaluation.latency import measure_latency, select_latency_batches
from compressor.evaluation.records import LatencyConfig
from compressor.runtimes.formats import StoredModel


@dataclass(frozen=True, slots=True)
class Ratio:
    """Latency of an artifact relative to the first artifact, over the rounds."""

    milliseconds: float
    """Median of the artifact's own medians."""
    median: float
    least: float
    most: float


@dataclass(frozen=True, slots=True)
class Rounds:
    """Number of rounds, calls of each artifact per round, threads, and samples per call."""

    count: int
    repeats: int
    threads: int
    batch_size: int = 1


def measure_interleaved(
    artifacts: Sequence[Artifact], pipeline: Path, rounds: Rounds
) -> list[Ratio]:
    """Return the ratio of each artifact, on the samples on which the pipeline is evaluated."""
    loaded = load_pipeline(pipeline)
    data = loaded.data[loaded.config.evaluate.accuracy.data]
    config = LatencyConfig(
        batch_size=rounds.batch_size, warmup=5, repeats=rounds.repeats, threads=rounds.threads
    )
    batches = select_latency_batches(
        data.source.load(data.config, SourceContext(loaded.base)), config
    )
    for artifact in artifacts:
        verify(artifact)
    sessions = [StoredModel.of(artifact).open_session(rounds.threads) for artifact in artifacts]
    medians: list[list[float]] = [[] for _ in sessions]
    for number in range(rounds.count):
        for index in random.Random(number).sample(range(len(sessions)), len(sessions)):
            times = measure_latency(sessions[index], batches, config)
            medians[index].append(statistics.median(times))
    return [summarize(own, medians[0]) for own in medians]


def summarize(medians: list[float], base: list[float]) -> Ratio:
    """Return the ratio of medians to those of the first artifact, round by round."""
    ratios = [own / first for own, first in zip(medians, base, strict=True)]
    middle = statistics.median(ratios)
    return Ratio(statistics.median(medians), middle, min(ratios), max(ratios))


def main() -> None:
    """Print one line per artifact."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("pipeline", type=Path)
    parser.add_argument("artifacts", type=Path, nargs="+")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--repeats", type=int, default=60, help="calls of each artifact per round")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch-size", type=int, default=1, help="samples per call")
    options = parser.parse_args()
    artifacts = [open_artifact(path) for path in options.artifacts]
    rounds = Rounds(options.rounds, options.repeats, options.threads, options.batch_size)
    ratios = measure_interleaved(artifacts, options.pipeline, rounds)
    base = artifacts[0].manifest.metric("macs")
    print(f"{'artifact':28}{'p50 ms':>9}{'latency':>10}{'(range)':>18}{'MACs':>9}")
    for artifact, ratio in zip(artifacts, ratios, strict=True):
        macs = artifact.manifest.metric("macs")
        macs_ratio = f"×{macs.value / base.value:.3f}" if macs and base else "–"
        spread = f"({ratio.least:.3f}–{ratio.most:.3f})"
        latency = f"×{ratio.median:.3f}"
        print(
            f"{artifact.name:28}{ratio.milliseconds:9.3f}{latency:>10}{spread:>18}{macs_ratio:>9}"
        )


if __name__ == "__main__":
    main()
