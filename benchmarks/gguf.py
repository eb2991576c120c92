"""GGUF files of `export-gguf` beside those of llama.cpp's own quantizer, both run by llama.cpp.

    python -m benchmarks.gguf quantize FLOAT.gguf FOLDER [--checkpoint MODEL --texts calibration]
    python -m benchmarks.gguf measure FLOAT.gguf NAME=FILE.gguf … --texts evaluation
    python -m benchmarks.gguf architectures

`quantize` writes Q4_0, Q4_1 and Q4_K_M with llama.cpp's library, and Q4_0 and Q4_K_M again with an
importance matrix of the checkpoint's activations if one is named; embedding and head are Q8_0 in
all, so that only the decoder differs. `measure` compares logits with the float file's, window by
window, and decodes with all files in turns. `architectures` compares llama.cpp with torch for every
row of the table, on tiny models. Requires the packages gguf and llama-cpp-py-sync.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import torch

from benchmarks.llamacpp import LlamaCpp, open_gguf
from tests.support.gguf_checkpoints import CHECKPOINTS, export_gguf, save_gguf_parent

_TYPES = {"Q4_0": 2, "Q4_1": 3, "Q4_K_M": 15}
"""Name to ``llama_ftype``."""
_WITH_IMATRIX = ("Q4_0", "Q4_K_M")
_Q8_0 = 8
"""``ggml_type`` of embedding and head."""
_CALIBRATION_WINDOWS, _CALIBRATION_TOKENS = 12, 256
_PROMPT, _DECODED = 32, 48


def windows(folder: Path, model: LlamaCpp, count: int, length: int) -> list[list[int]]:
    """Return windows of tokens, spread over the text files of a folder."""
    files = sorted(folder.glob("*.txt"))
    tokens = [model.tokens(file.read_text(encoding="utf-8")) for file in files]
    parts = [
        row[start : start + length]
        for row in tokens
        for start in range(0, len(row) - length + 1, length)
    ]
    return parts[:: max(1, len(parts) // count)][:count]


def importance(checkpoint: Path, parts: list[list[int]]) -> dict[str, np.ndarray]:
    """Return the mean square of each input of each linear layer, by the names of GGUF."""
    import gguf
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    arch = {"gemma3_text": "gemma3"}.get(model.config.model_type, model.config.model_type)
    key = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == arch)
    names = gguf.get_tensor_name_map(key, model.config.num_hidden_layers)
    sums: dict[str, torch.Tensor] = {}

    def hook(name: str):
        def add(_module, inputs, _output) -> None:
            squares = inputs[0].flatten(0, -2).float().square().mean(dim=0)
            sums[name] = sums.get(name, torch.zeros_like(squares)) + squares

        return add

    for name, module in model.named_modules():
        target = names.get_name(f"{name}.weight", try_suffixes=(".weight",))
        if isinstance(module, torch.nn.Linear) and target:
            module.register_forward_hook(hook(target))
    with torch.no_grad():
        for tokens in parts:
            model(torch.tensor([tokens]))
    return {name: (value / len(parts)).numpy() for name, value in sums.items()}


def quantize(options: argparse.Namespace) -> None:
    """Write the files of llama.cpp's quantizer."""
    matrix: Mapping[str, np.ndarray] = {}
    with open_gguf(options.float, context=_CALIBRATION_TOKENS) as model:
        library, ffi = model.llama._lib, model.llama._ffi
        if options.checkpoint:
            parts = windows(options.texts, model, _CALIBRATION_WINDOWS, _CALIBRATION_TOKENS)
            matrix = importance(options.checkpoint, parts)
    kept = [(ffi.new("char[]", name.encode()), value) for name, value in matrix.items()]
    entries = ffi.new("struct llama_model_imatrix_data[]", len(kept) + 1)
    for entry, (name, value) in zip(entries, kept, strict=False):
        entry.name, entry.size = name, len(value)
        entry.data = ffi.from_buffer("float[]", value)
    for kind, number in _TYPES.items():
        for uses_matrix in (False, True) if matrix and kind in _WITH_IMATRIX else (False,):
            fields = library.llama_model_quantize_default_params()
            fields.nthread, fields.ftype = options.threads, number
            fields.output_tensor_type = fields.token_embedding_type = _Q8_0
            if uses_matrix:
                fields.imatrix = entries
            file = options.folder / f"{kind}{'-imatrix' if uses_matrix else ''}.gguf"
            options.folder.mkdir(parents=True, exist_ok=True)
            paths = (str(options.float).encode(), str(file).encode())
            if library.llama_model_quantize(
                *paths, ffi.new("llama_model_quantize_params *", fields)
            ):
                sys.exit(f"llama.cpp could not quantize to {kind}")
            print(file, f"{file.stat().st_size / 1e6:.1f} MB")


def log_probabilities(logits: np.ndarray) -> torch.Tensor:
    """Return log probabilities after each token, [tokens, vocabulary]."""
    return torch.from_numpy(logits).log_softmax(dim=1)


def scores(own: torch.Tensor, base: torch.Tensor, tokens: list[int]) -> tuple[float, ...]:
    """Return negative log-likelihood, KL divergence and agreement, each a mean over tokens."""
    likelihood = own[torch.arange(len(tokens) - 1), torch.tensor(tokens[1:])]
    kl = (base.exp() * (base - own)).sum(dim=1)
    agreement = (own.argmax(dim=1) == base.argmax(dim=1)).float().mean()
    return -float(likelihood.mean()), float(kl.mean()), float(agreement)


def tokens_per_second(model: LlamaCpp) -> tuple[float, float]:
    """Return the speed of prefill and of decoding one token after another."""
    prompt = list(range(100, 100 + _PROMPT))
    start = time.perf_counter()
    model.logits(prompt)
    prefill = _PROMPT / (time.perf_counter() - start)
    start = time.perf_counter()
    for position in range(_PROMPT, _PROMPT + _DECODED):
        model.decode(200 + position, position)
    return prefill, _DECODED / (time.perf_counter() - start)


def measure(options: argparse.Namespace) -> None:
    """Print a row for each file."""
    files = {"float": options.float} | dict(each.split("=", 1) for each in options.files)
    with ExitStack() as stack:
        models = {
            name: stack.enter_context(
                open_gguf(Path(file), context=options.length, threads=options.threads)
            )
            for name, file in files.items()
        }
        parts = windows(options.texts, models["float"], options.windows, options.length)
        table: dict[str, list[tuple[float, ...]]] = {name: [] for name in files}
        speeds: dict[str, list[tuple[float, float]]] = {name: [] for name in files}
        for tokens in parts:
            base = log_probabilities(models["float"].logits(tokens))
            for name, model in models.items():
                own = log_probabilities(model.logits(tokens))
                table[name].append(scores(own, base, tokens))
        for _ in range(options.rounds):
            for name in random.sample(list(files), len(files)):
                speeds[name].append(tokens_per_second(models[name]))
    print(f"{len(parts)} windows of {options.length} tokens, {options.threads} threads")
    for name, file in files.items():
        loss, kl, agreement = (statistics.mean(column) for column in zip(*table[name], strict=True))
        prefill, decode = (statistics.median(column) for column in zip(*speeds[name], strict=True))
        print(
            f"{name:16} {Path(file).stat().st_size / 1e6:7.1f} MB  ppl {np.exp(loss):7.3f}  "
            f"KL {kl:.4f}  top-1 {agreement:.3f}  {prefill:6.0f} / {decode:5.1f} tok/s"
        )


def architectures(_options: argparse.Namespace) -> None:
    """Print the largest difference of logits for each architecture."""
    import transformers

    tokens = np.random.default_rng(0).integers(3, 380, 48).tolist()
    for name in CHECKPOINTS:
        with tempfile.TemporaryDirectory() as folder:
            parent = save_gguf_parent(Path(folder) / "parent", name)
            file, output = export_gguf(parent, Path(folder) / "out")
            module = transformers.AutoModelForCausalLM.from_pretrained(
                parent.model, dtype=torch.float32, attn_implementation="eager"
            )
            with torch.no_grad():
                expected = module(torch.tensor([tokens])).logits[0].numpy()
            with open_gguf(file, context=256) as model:
                logits = model.logits(tokens)
        difference = np.abs(logits - expected).max()
        print(
            f"{name:28} {output.summary['architecture']:8} max |Δ| {difference:.5f} of logits with "
            f"deviation {expected.std():.3f}"
        )


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=2)
    commands = parser.add_subparsers(required=True)
    command = commands.add_parser("quantize")
    command.add_argument("float", type=Path)
    command.add_argument("folder", type=Path)
    command.add_argument("--checkpoint", type=Path)
    command.add_argument("--texts", type=Path)
    command.set_defaults(run=quantize)
    command = commands.add_parser("measure")
    command.add_argument("float", type=Path)
    command.add_argument("files", nargs="+")
    command.add_argument("--texts", type=Path, required=True)
    command.add_argument("--windows", type=int, default=40)
    command.add_argument("--length", type=int, default=512)
    command.add_argument("--rounds", type=int, default=7)
    command.set_defaults(run=measure)
    commands.add_parser("architectures").set_defaults(run=architectures)
    options = parser.parse_args()
    options.run(options)


if __name__ == "__main__":
    main()
