"""Compare `awq` with round-to-nearest and llm-compressor, on the same samples.

    python examples/smollm2/prepare.py FOLDER          # once: weights and text
    python -m venv PEERS
    echo "$PWD/.venv/lib/python3.11/site-packages" > PEERS/lib/python3.11/site-packages/ours.pth
    PEERS/bin/pip install --no-deps llmcompressor==0.14.0.1 compressed-tensors loguru datasets \
        nvidia-ml-py requests pyarrow dill multiprocess xxhash pandas fsspec aiohttp auto-round
    python benchmarks/awq.py FOLDER [--peers PEERS/bin/python] [--bits 4] [--group 64] \
        [--rows ...] [--windows 40]

Every row is quantized in its own process, whose time and peak memory are printed, with the same 32
windows of 256 tokens. This program measures KL, perplexity and agreement with the float model, on
pages that no row uses.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

OURS: dict[str, dict[str, Any]] = {
    "awq": {},
    "awq, no error compensation": {"error_compensation": 0.0},
    "awq, no scaling": {"scaling": False},
    "awq, scaling alone": {"error_compensation": 0.0, "refine": "none"},
    "nearest": {"error_compensation": 0.0, "refine": "none", "scaling": False},
}
PEERS = ("llm-compressor AWQ", "llm-compressor GPTQ", "llm-compressor AWQ, then GPTQ")
SAMPLES, LENGTH = 32, 256


def pipeline(folder: Path, model: Path, windows: int, reference: str | None) -> dict[str, Any]:
    """Return a pipeline that measures ``model`` relative to ``reference``."""
    text = {"source": "text", "tokenizer": str(folder / "model")}
    pages = str(folder / "text/{}/*.txt")
    accuracy = {"data": "evaluation", "metrics": ["perplexity", "agreement", "kl"], "batch_size": 2}
    return {
        "version": 1,
        "name": "awq-benchmark",
        "threads": 2,
        "model": {"path": str(model)},
        "data": {
            "calibration": {**text, "path": pages.format("calibration"), "sequence_length": LENGTH},
            "evaluation": {
                **text,
                "path": pages.format("evaluation"),
                "sequence_length": 512,
                "num_samples": windows,
            },
        },
        "evaluate": {"accuracy": accuracy | ({"reference": reference} if reference else {})},
        "passes": [],
    }


def write_json(tree: dict[str, Any], file: Path) -> Path:
    """Write a tree to a file and return the file."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(tree, indent=1), encoding="utf-8")
    return file


def measure(
    folder: Path, model: Path, store: Path, windows: int, reference: str | None
) -> dict[str, Any]:
    """Return the ladder's row of a model without any pass."""
    file = write_json(
        pipeline(folder, model, windows, reference),
        store / "pipelines" / f"measure-{model.name}.json",
    )
    command = [sys.executable, "-m", "cli", "run", str(file), "-o", str(store), "--json"]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    rows: list[dict[str, Any]] = json.loads(done.stdout)["ladder"]["rows"]
    return next(row for row in rows if row["step"] == "source")


def run_timed(command: list[str]) -> tuple[float, float]:
    """Run a process and return its seconds and its peak memory in MB, children included."""
    started = time.perf_counter()
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(child.pid, 0)
    if status:
        raise SystemExit(f"{' '.join(command)} ended with {os.waitstatus_to_exitcode(status)}")
    return time.perf_counter() - started, usage.ru_maxrss / 1024


def quantize_by_awq(
    row: str, options: argparse.Namespace, folder: Path, store: Path
) -> tuple[Path, float, float]:
    """Run the pass on the command line; return model, seconds and peak memory in MB."""
    own = store / row.replace(",", "").replace(" ", "-")
    fields = {
        "bits": options.bits,
        "group_size": options.group,
        "format": "awq" if options.bits == 4 else "compressed-tensors",
        "calibration.data": "calibration",
        "calibration.num_samples": SAMPLES,
        **OURS[row],
    }
    tree = pipeline(folder, folder / "model", 1, None)
    del tree["evaluate"]
    file = write_json(tree, store / "pipelines" / "data.json")
    command = [
        sys.executable,
        "-m",
        "cli",
        "pass",
        "awq",
        str(folder / "model"),
        "-p",
        str(file),
        "-o",
        str(own),
    ]
    for name, value in fields.items():
        command += ["--set", f"{name}={json.dumps(value) if not isinstance(value, str) else value}"]
    seconds, memory = run_timed(command)
    return next(own.glob("awq-*")) / "model", seconds, memory


def save_windows(folder: Path, file: Path) -> None:
    """Save the windows on which `awq` calibrates, for the peers."""
    import numpy as np

    from calibration.samples import spread_indices
    from calibration.sources.text import Text
    from compressor.data.contract import SourceContext

    source = Text()
    data = pipeline(folder, folder, 1, None)["data"]["calibration"]
    dataset = source.load(source.Config.model_validate(data), SourceContext(folder))
    np.save(file, dataset.batch(spread_indices(len(dataset), SAMPLES))["input_ids"])


def quantize_in_peer_environment(
    row: str, options: argparse.Namespace, folder: Path, store: Path
) -> tuple[Path, float, float]:
    """Run this script in the peers' environment; return as ``quantize_by_awq``."""
    out, windows = store / row.replace(",", "").replace(" ", "-"), store / "windows.npy"
    save_windows(folder, windows)
    command = [
        str(options.peers),
        __file__,
        str(folder),
        "--bits",
        str(options.bits),
        "--group",
        str(options.group),
    ]
    seconds, memory = run_timed([*command, "--quantize", row, str(windows), str(out)])
    return out, seconds, memory


def quantize_by_peer(row: str, windows: str, out: str, folder: Path, bits: int, group: int) -> None:
    """Quantize with llm-compressor on a CPU, as its documentation describes."""
    import numpy as np
    import torch
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
    from datasets import Dataset
    from llmcompressor import oneshot
    from llmcompressor.modifiers.gptq import GPTQModifier
    from llmcompressor.modifiers.quantization import QuantizationModifier
    from llmcompressor.modifiers.transform.awq import AWQModifier
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.Tensor.pin_memory = lambda self, *_: self  # pinning needs a GPU
    torch.set_num_threads(2)
    model = AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32)
    weights = QuantizationArgs(
        num_bits=bits, type="int", symmetric=False, strategy="group", group_size=group
    )
    scheme = {
        "config_groups": {"group_0": QuantizationScheme(targets=["Linear"], weights=weights)},
        "ignore": ["lm_head"],
    }
    scaling = [AWQModifier()] if "AWQ" in row else []
    recipe = [*scaling, GPTQModifier(**scheme) if "GPTQ" in row else QuantizationModifier(**scheme)]
    ids = np.load(windows)
    dataset = Dataset.from_dict(
        {"input_ids": ids.tolist(), "attention_mask": np.ones_like(ids).tolist()}
    )
    oneshot(
        model=model,
        dataset=dataset,
        recipe=recipe,
        max_seq_length=LENGTH,
        num_calibration_samples=len(ids),
        # In a single pass, GPTQ would use inputs from before they were scaled.
        pipeline="independent" if len(recipe) > 1 and "GPTQ" in row else "sequential",
    )
    model.save_pretrained(out, save_compressed=True)
    AutoTokenizer.from_pretrained(folder / "model").save_pretrained(out)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument(
        "--peers",
        type=Path,
        help="Python interpreter with llm-compressor; without it, its rows are skipped",
    )
    parser.add_argument("--bits", type=int, default=4)
    parser.add_argument("--group", type=int, default=64)
    parser.add_argument("--rows", nargs="+", default=[*OURS, *PEERS], choices=[*OURS, *PEERS])
    parser.add_argument(
        "--windows", type=int, default=40, help="windows of 512 tokens for evaluation"
    )
    parser.add_argument("--store", type=Path, default=Path("artifacts/benchmark-awq"))
    parser.add_argument("--quantize", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    folder, store = (
        options.folder.resolve(),
        options.store.resolve() / f"{options.bits}-bits-{options.group}",
    )
    if options.quantize:
        quantize_by_peer(*options.quantize, folder, options.bits, options.group)
        return
    parent = measure(folder, folder / "model", store, options.windows, None)
    reference = next(path for path in store.glob("source-*") if path.name == parent["name"])
    print(
        f"{'':32}{'KL':>8}{'perplexity':>12}{'top-1':>8}{'seconds':>9}{'MB':>7}{'size':>7}",
        flush=True,
    )
    for row in options.rows:
        if row in PEERS and options.peers is None:
            continue
        quantize = quantize_in_peer_environment if row in PEERS else quantize_by_awq
        model, seconds, memory = quantize(row, options, folder, store)
        metrics = measure(folder, model, store, options.windows, str(reference))["metrics"]
        kl, perplexity, top1 = (
            metrics[name]["value"] for name in ("kl", "perplexity", "agreement")
        )
        size = metrics["size_bytes"]["value"] / parent["metrics"]["size_bytes"]["value"]
        print(
            f"{row:32}{kl:8.4f}{perplexity:12.2f}{top1:8.3f}{seconds:9.0f}{memory:7.0f}{size:7.3f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
