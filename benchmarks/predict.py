"""Measure predictions per second of a model behind the queue of `serve`, and over HTTP.

    python -m benchmarks.predict MODEL [--in-flight 64] [--batch 8 16] [--rounds 5] [--seconds 2]

MODEL is an artifact of a model without text generation. In every round, in random order: ONNX
Runtime alone with one thread, one sample after the other; the queue in this process, with two
workers and as many requests in flight as asked for; and the same over HTTP (`serve` in a process of
its own, bodies of .safetensors, kept connections; this client runs on the same cores). Printed are
medians and ranges of predictions per second, and of the median latency.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable
from pathlib import Path

import numpy as np
from safetensors.numpy import save

from benchmarks.serve import described
from compressor.data.contract import Batch
from compressor.generation.generate import model_at
from compressor.models.capabilities.signature import InputSpec
from compressor.serving.predictor import Predictor

WORKERS, PORT = 2, 18095
MAX_WAIT_SECONDS = 1.0
SIZES = {"tokens": 48, "frames": 192}
"""Sizes of free dimensions: those of the demo's samples; 16 for others."""
Predict = Callable[[int], Awaitable[None]]


def sample(specs: tuple[InputSpec, ...], generator: np.random.Generator) -> Batch:
    """Return random arrays of one sample."""
    arrays = {}
    for spec in specs:
        sizes = [size if isinstance(size, int) else SIZES.get(size, 16) for size in spec.shape[1:]]
        if spec.dtype.startswith("float"):
            arrays[spec.name] = generator.standard_normal((1, *sizes)).astype(spec.dtype)
        else:
            arrays[spec.name] = generator.integers(0, spec.below or 50, (1, *sizes), spec.dtype)
    return arrays


async def load(predict: Predict, in_flight: int, seconds: float) -> tuple[float, float]:
    """Return predictions per second and the median latency in ms, of requests that never pause."""
    latencies: list[float] = []
    started = time.perf_counter()
    end = started + seconds

    async def client(number: int) -> None:
        while (begun := time.perf_counter()) < end:
            await predict(number)
            latencies.append(time.perf_counter() - begun)

    await asyncio.gather(*map(client, range(in_flight)))
    rate = len(latencies) / (time.perf_counter() - started)
    return rate, 1e3 * statistics.median(latencies)


async def http(bodies: list[bytes], in_flight: int, seconds: float) -> tuple[float, float]:
    """Return the figures of ``load`` over kept connections."""
    streams = [await asyncio.open_connection("127.0.0.1", PORT) for _ in range(in_flight)]

    async def predict(number: int) -> None:
        reader, writer = streams[number]
        body = bodies[number % len(bodies)]
        writer.write(
            b"POST /v1/predict HTTP/1.1\r\nhost: localhost\r\n"
            b"content-type: application/vnd.safetensors\r\n"
            b"content-length: %d\r\n\r\n" % len(body) + body
        )
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        if b" 200 " not in head.split(b"\r\n", 1)[0]:
            sys.exit(f"the server answered {head.decode()}")
        await reader.readexactly(int(head.split(b"content-length:")[1].split(b"\r\n")[0]))

    try:
        return await load(predict, in_flight, seconds)
    finally:
        for _, writer in streams:
            writer.close()


async def wait_for_server() -> None:
    for _ in range(300):
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", PORT)
            writer.write(b"GET /health HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")
            status = await reader.readline()
            writer.close()
            if b" 200 " in status:
                return
        except OSError:
            pass
        await asyncio.sleep(0.2)
    sys.exit("the server does not answer")


async def compare(options: argparse.Namespace) -> dict[str, list[tuple[float, float]]]:
    """Return rate and median latency of every round, by what was measured."""
    model = model_at(Path(options.model))
    predictors = {
        batch: Predictor(model, workers=WORKERS, max_batch=batch, max_wait_seconds=MAX_WAIT_SECONDS)
        for batch in options.batch
    }
    specs = next(iter(predictors.values())).inputs
    generator = np.random.default_rng(0)
    samples = [sample(specs, generator) for _ in range(options.in_flight)]
    bodies = [save(arrays) for arrays in samples]
    session = model.runnable()[0].open_session(1)

    async def alone(number: int) -> None:
        session.compute(samples[number])

    def queued(predictor: Predictor) -> Predict:
        async def predict(number: int) -> None:
            await predictor.predict(samples[number])

        return predict

    runs = {"ONNX Runtime, one by one": lambda: load(alone, 1, options.seconds)}
    for batch, predictor in predictors.items():
        runs[f"queue, batches of up to {batch}"] = lambda predictor=predictor: load(
            queued(predictor), options.in_flight, options.seconds
        )
    runs["HTTP"] = lambda: http(bodies, options.in_flight, options.seconds)
    await wait_for_server()
    figures: dict[str, list[tuple[float, float]]] = defaultdict(list)
    order = random.Random(1)
    for _ in range(options.rounds + 1):  # the first warms up
        for name in order.sample(list(runs), len(runs)):
            figures[name].append(await runs[name]())
    return {name: figures[name][1:] for name in runs}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model")
    parser.add_argument("--in-flight", type=int, default=64)
    parser.add_argument("--batch", type=int, nargs="+", default=[8, 16])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0)
    options = parser.parse_args()
    command = [sys.executable, "-m", "cli", "serve", options.model, "--port", str(PORT)]
    server = subprocess.Popen(
        [*command, "--max-wait-ms", "1000", "--threads", str(WORKERS)], stdout=subprocess.DEVNULL
    )
    try:
        figures = asyncio.run(compare(options))
    finally:
        server.terminate()
    for name, rounds in figures.items():
        rates, latencies = map(list, zip(*rounds, strict=True))
        print(f"{name}: {described(rates)} predictions/s, p50 {described(latencies)} ms")


if __name__ == "__main__":
    main()
