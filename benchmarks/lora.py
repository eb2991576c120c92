"""Speed, size and perplexity of a decoder's graph with slots for adapters.

    python benchmarks/lora.py PLAIN SLOTS [--adapter PATH] [--text FOLDER] [--rounds 15]

PLAIN and SLOTS are `export-onnx` artifacts of one language model, without and with
`decoder: {adapter_slots: [...]}`. Decoding is timed in interleaved rounds of 32 tokens after a
prompt of 128: the graph without slots, with empty slots, and with an adapter; each ratio is the
median over the rounds of the CPU time of one by that of the first in the same round, with its
quartiles (one thread: other processes count less in it than in the time that passes). Without
`--adapter` a random one of rank 8 for all slots is written and removed again (speed alone is
measured). Swapping is timed from the call to the end of one step, less a step without a swap. With
`--text`, a folder of .txt files, the perplexity of windows of 512 tokens is printed without and
with the adapter.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from compressor.generation.adapters import named_adapters
from compressor.generation.generate import model_at
from compressor.graphs.decoder.adapter_slots import (
    SLOTS_KEY,
    slot_inputs,
    slots_from_json,
)
from compressor.graphs.files import read_graph
from compressor.models.adapters.base import BASE_KEY, AdapterBase, write_base
from compressor.models.adapters.factors import read_factors
from compressor.runtimes.rows import RowDecoder, RowOptions

PROMPT, STEPS, WINDOW = 128, 32, 512
RANK = 8


def metadata_of(folder: Path) -> dict[str, str]:
    return {entry.key: entry.value for entry in read_graph(folder).metadata_props}


def write_random(folder: Path, slots: Path) -> Path:
    metadata, generator = metadata_of(slots), np.random.default_rng(0)
    tensors = {}
    for slot in slots_from_json(metadata[SLOTS_KEY], slots):
        for module, width in zip(slot.modules, slot.widths, strict=True):
            if not module.endswith("k_proj"):
                for part, shape in (("A", (RANK, slot.inputs)), ("B", (width, RANK))):
                    values = generator.normal(0, 0.01, shape).astype(np.float32)
                    tensors[f"base_model.model.{module}.lora_{part}.weight"] = values
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": RANK, "lora_alpha": 16}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    write_base(AdapterBase(artifact=None, digest=metadata[BASE_KEY], name="base"), folder)
    return folder


def open_rows(folder: Path, adapters: dict[str, Path]) -> RowDecoder:
    model = model_at(folder)
    return model.format.open_rows(model.path, RowOptions(1, 1, WINDOW, adapters=adapters))


def seconds(decoder: RowDecoder, adapter: str | None) -> float:
    """Return the time of decoding ``STEPS`` tokens after a prompt."""
    ids = np.arange(PROMPT, dtype=np.int64) % 1000 + 100
    decoder.use_adapter(0, adapter)
    decoder.append(0, 0, ids, None, 1)
    started = time.process_time()
    for step in range(STEPS):
        decoder.append(0, PROMPT + step, ids[:1], None, 1)
    return time.process_time() - started


def quartiles(values: list[float]) -> str:
    low, middle, high = statistics.quantiles(values, n=4)
    return f"{middle:.3f} ({low:.3f} to {high:.3f})"


def time_decoding(plain: RowDecoder, slots: RowDecoder, rounds: int) -> None:
    cases: list[tuple[str, RowDecoder, str | None]] = [
        ("without slots", plain, None),
        ("empty slots", slots, None),
        ("with the adapter", slots, "adapter"),
    ]
    times: dict[str, list[float]] = {name: [] for name, _, _ in cases}
    generator = np.random.default_rng(0)
    for number in range(rounds + 1):
        for index in generator.permutation(len(cases)):
            name, decoder, adapter = cases[index]
            taken = seconds(decoder, adapter)
            if number:  # the first round warms up
                times[name].append(taken)
    for name, values in times.items():
        ratios = [a / b for a, b in zip(values, times["without slots"], strict=True)]
        speed = STEPS / statistics.median(values)
        print(f"decoding {name}: {speed:.1f} tokens/s, time ratio {quartiles(ratios)}")


def time_swaps(decoder: RowDecoder, rounds: int) -> None:
    ids = np.arange(8, dtype=np.int64) + 100
    decoder.append(0, 0, ids, None, 1)
    extra = []
    for _ in range(rounds):
        taken = []
        for adapter in (None, "adapter", "adapter"):
            started = time.process_time()
            decoder.use_adapter(0, adapter)
            decoder.append(0, len(ids), ids[:1], None, 1)
            taken.append(time.process_time() - started)
        extra.append(1000 * (taken[1] - taken[2]))
    print(f"swap of a loaded adapter: {quartiles(extra)} ms")


def perplexity(decoder: RowDecoder, adapter: str | None, ids: np.ndarray[Any, Any]) -> float:
    decoder.use_adapter(0, adapter)
    losses = []
    for start in range(0, len(ids) - WINDOW + 1, WINDOW):
        window = ids[start : start + WINDOW]
        logits = decoder.append(0, 0, window, None, WINDOW)[:-1].astype(np.float64)
        logits -= logits.max(axis=1, keepdims=True)
        normalizer = np.log(np.exp(logits).sum(axis=1))
        losses.append(normalizer - logits[np.arange(WINDOW - 1), window[1:]])
    return float(np.exp(np.concatenate(losses).mean()))


def read_tokens(texts: Path, folder: Path, windows: int) -> np.ndarray[Any, Any]:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    text = "\n\n".join(name.read_text() for name in sorted(texts.glob("*.txt")))
    return np.array(tokenizer.encode(text, add_special_tokens=False).ids[: windows * WINDOW])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("plain", type=Path)
    parser.add_argument("slots", type=Path)
    parser.add_argument("--adapter", type=Path)
    parser.add_argument("--text", type=Path)
    parser.add_argument("--windows", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=15)
    arguments = parser.parse_args()
    plain, slots = (model_at(path).path for path in (arguments.plain, arguments.slots))
    with tempfile.TemporaryDirectory() as temporary:
        if arguments.adapter is None:
            adapter = write_random(Path(temporary), slots)
        else:
            [adapter] = named_adapters([str(arguments.adapter)]).values()
        sizes = [sum(f.stat().st_size for f in p.glob("model.onnx*")) for p in (plain, slots)]
        size = (adapter / "adapter_model.safetensors").stat().st_size
        print(f"graph {sizes[0]:,} bytes, slots {sizes[1] - sizes[0]:+,}, adapter {size:,}")
        decoder = open_rows(arguments.slots, {"adapter": adapter})
        base = open_rows(arguments.plain, {})
        layout = slots_from_json(metadata_of(slots)[SLOTS_KEY], slots)
        started = time.process_time()
        slot_inputs(layout, read_factors(adapter), np.float32, adapter)
        print(f"reading the adapter: {1000 * (time.process_time() - started):.0f} ms")
        ids = np.arange(PROMPT, dtype=np.int64) % 1000 + 100
        same = np.array_equal(
            base.append(0, 0, ids, None, PROMPT), decoder.append(0, 0, ids, None, PROMPT)
        )
        print(f"logits without an adapter: {'equal, bit for bit' if same else 'DIFFERENT'}")
        time_decoding(base, decoder, arguments.rounds)
        time_swaps(decoder, arguments.rounds)
        if arguments.text:
            tokens = read_tokens(arguments.text, slots, arguments.windows)
            for name in (None, "adapter"):
                value = perplexity(decoder, name, tokens)
                print(f"perplexity of {len(tokens)} tokens, {name or 'no adapter'}: {value:.2f}")


if __name__ == "__main__":
    main()
