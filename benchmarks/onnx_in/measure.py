"""Accuracy relative to the float model, and latency in interleaved rounds."""

from __future__ import annotations

import random
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from benchmarks.latency import Ratio, summarize
from benchmarks.onnx_in.model import Array, Arrays, Model, feeds, open_model

_ROUND_SECONDS = 0.15
"""Time of one model's calls in one round, where one call is shorter."""


def smoke_test(file: Path, samples: Path) -> str | None:
    """Run one sample in another process; return the message if the process fails or crashes."""
    command = [sys.executable, "-m", "benchmarks.onnx_in.measure", str(file), str(samples)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode < 0:
        return f"crashes ONNX Runtime: {signal.Signals(-done.returncode).name}"
    if done.returncode:
        return f"does not run: {done.stderr.strip().splitlines()[-1]}"
    return None


def run_all(session: onnxruntime.InferenceSession, samples: list[dict[str, Array]]) -> list[Any]:
    """Return the outputs of each sample."""
    return [session.run(None, sample) for sample in samples]


def accuracy(
    model: Model, expected: list[list[Array]], actual: list[list[Array]]
) -> dict[str, Any]:
    """Return the measure of the package, and error and cosine of the worst output.

    Raises:
        ValueError: an output has values that are not finite, where the float model's are.
    """
    outputs = [
        compare([row[index] for row in expected], [row[index] for row in actual])
        for index in range(len(expected[0]))
    ]
    agreements = [model.agreement(*pair) for pair in zip(expected, actual, strict=True)]
    return {
        "agreement": float(np.mean(agreements)),
        "relative_error": max(output["relative_error"] for output in outputs),
        "sample_error": max(output["sample_error"] for output in outputs),
        "cosine": min(output["cosine"] for output in outputs),
        "outputs": outputs,
    }


def compare(expected: Sequence[Array], actual: Sequence[Array]) -> dict[str, float]:
    """Return ‖a − b‖ / ‖b‖, the mean cosine, and the share of changed shapes.

    The error is that over all samples together, and the median of those of the samples: a few
    samples, whose probabilities a small error turns, may make most of the former. Arrays of other
    lengths are compared where both have values.
    """
    squares, norms, errors, cosines, reshaped = 0.0, 0.0, [], [], 0
    for wanted, found in zip(expected, actual, strict=True):
        reshaped += wanted.shape != found.shape
        length = min(wanted.size, found.size)
        a = found.ravel()[:length].astype(np.float64)
        b = wanted.ravel()[:length].astype(np.float64)
        a, b = a[np.isfinite(b)], b[np.isfinite(b)]
        if not np.isfinite(a).all():
            raise ValueError("outputs are not finite")
        square, norm = float(((a - b) ** 2).sum()), float((b**2).sum())
        squares, norms = squares + square, norms + norm
        errors.append((square / max(norm, 1e-30)) ** 0.5)
        lengths = float(np.linalg.norm(a) * np.linalg.norm(b))
        if lengths:
            cosines.append(float(a @ b) / lengths)
    return {
        "relative_error": (squares / max(norms, 1e-30)) ** 0.5,
        "sample_error": float(np.median(errors)),
        "cosine": float(np.mean(cosines)) if cosines else 1.0,
        "reshaped": reshaped / len(expected),
    }


def latency(files: Sequence[Path], arrays: Arrays, rounds: int, threads: int) -> list[Ratio]:
    """Return the latency of each file relative to the first; samples are called in turn.

    With one thread it is the processor time of that thread, in which other load does not count.
    """
    now = time.thread_time_ns if threads == 1 else time.perf_counter_ns
    sessions = [open_model(file, threads) for file in files]
    samples = feeds(sessions[0], arrays)[:32]
    repeats = [_repeats(session, samples) for session in sessions]
    medians: list[list[float]] = [[] for _ in sessions]
    for number in range(rounds):
        for index in random.Random(number).sample(range(len(sessions)), len(sessions)):
            times = []
            for call in range(repeats[index]):
                sample = samples[call % len(samples)]
                start = now()
                sessions[index].run(None, sample)
                times.append((now() - start) / 1e6)
            medians[index].append(statistics.median(times))
    return [summarize(own, medians[0]) for own in medians]


def _repeats(session: onnxruntime.InferenceSession, samples: list[dict[str, Array]]) -> int:
    """Return the number of calls per round, after a warm-up."""
    session.run(None, samples[0])
    start = time.perf_counter()
    session.run(None, samples[0])
    return int(np.clip(_ROUND_SECONDS / (time.perf_counter() - start), 2, 60))


if __name__ == "__main__":
    opened = open_model(Path(sys.argv[1]), threads=1)
    with np.load(sys.argv[2]) as stored:
        opened.run(None, feeds(opened, {name: stored[name][:1] for name in stored})[0])
