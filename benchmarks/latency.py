"""The latency of artifacts against the first of them, in turns, so that a noisy machine slows all alike.

    python benchmarks/latency.py examples/phone/prune.yaml ARTIFACT ARTIFACT … [--rounds 15] [--threads 1] [--batch-size 1]

Each round calls every artifact, in a random order, on the same samples of the pipeline's `evaluate:` set; a ratio is of medians
within one round, and what is printed is the median and the range of the rounds' ratios.
"""

from __future__ import annotations

import argparse
import random
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from compressor.artifacts.store import Artifact, open_artifact, verify
from compressor.data.contract import SourceContext
from compressor.engine.plan.pipeline import load_pipeline
from compressor.evaluation.latency import batches_for_latency, measure_latency
from compressor.evaluation.records import LatencyConfig
from compressor.runtimes.formats import StoredModel


@dataclass(frozen=True, slots=True)
class Ratio:
    """An artifact's latency against the first one's, over the rounds."""

    milliseconds: float
    """The median of the artifact's own medians."""
    median: float
    least: float
    most: float


def in_turns(
    artifacts: Sequence[Artifact],
    pipeline: Path,
    rounds: int,
    repeats: int,
    threads: int,
    batch_size: int = 1,
) -> list[Ratio]:
    """Each artifact's ratio, on the samples that the pipeline evaluates on."""
    loaded = load_pipeline(pipeline)
    data = loaded.data[loaded.config.evaluate.accuracy.data]
    config = LatencyConfig(batch_size=batch_size, warmup=5, repeats=repeats, threads=threads)
    batches = batches_for_latency(data.source.load(data.config, SourceContext(loaded.base)), config)
    for artifact in artifacts:
        verify(artifact)
    sessions = [StoredModel.of(one).open_session(threads) for one in artifacts]
    medians: list[list[float]] = [[] for _ in sessions]
    for number in range(rounds):
        for index in random.Random(number).sample(range(len(sessions)), len(sessions)):
            medians[index].append(
                statistics.median(
                    measure_latency(sessions[index], batches, config, lambda *_: None)
                )
            )
    found = []
    for own in medians:
        ratios = [mine / first for mine, first in zip(own, medians[0], strict=True)]
        found.append(
            Ratio(statistics.median(own), statistics.median(ratios), min(ratios), max(ratios))
        )
    return found


def main() -> None:
    """Print one line for each artifact."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("pipeline", type=Path)
    parser.add_argument("artifacts", type=Path, nargs="+")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--repeats", type=int, default=60, help="calls of each artifact in a round")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch-size", type=int, default=1, help="samples of a call")
    options = parser.parse_args()
    artifacts = [open_artifact(path) for path in options.artifacts]
    ratios = in_turns(
        artifacts,
        options.pipeline,
        options.rounds,
        options.repeats,
        options.threads,
        options.batch_size,
    )
    base = artifacts[0].manifest.metric("macs")
    print(f"{'artifact':28}{'p50 ms':>9}{'latency':>10}{'(range)':>18}{'MACs':>9}")
    for artifact, ratio in zip(artifacts, ratios, strict=True):
        macs = artifact.manifest.metric("macs")
        part = f"×{macs.value / base.value:.3f}" if macs and base else "–"
        spread = f"({ratio.least:.3f}–{ratio.most:.3f})"
        print(
            f"{artifact.name:28}{ratio.milliseconds:9.3f}{f'×{ratio.median:.3f}':>10}{spread:>18}{part:>9}"
        )


if __name__ == "__main__":
    main()
