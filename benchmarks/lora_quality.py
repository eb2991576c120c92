"""Perplexity of a language model under adapters, on the domain they were trained on and on another.

    python -m benchmarks.lora_quality STORE TEXT [--windows 6]

STORE holds the artifacts of examples/smollm2/lora.yaml: the float model, its `awq` artifact
(`int4`), and the adapters `int4-adapter` and `float-adapter`. TEXT is a folder of .txt files of
the domain that were not trained on. The other domain is the language reference in Python's own
`pydoc_data`: what an adapter forgets shows there. Each adapter is also measured on the model that
it was not trained on (its values are added in torch, past the check of the base), and the one of
the packed model from a package of 8 bits.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer

from compressor.artifacts.artifact import Artifact, open_artifact
from compressor.models.adapters.peft_modules import add_adapter
from compressor.models.checkpoint.loading import load_module
from compressor.runtimes.delta.apply import Application, apply_package
from compressor.runtimes.delta.slot import now
from tests.support.deltas import make_package

WINDOW = 512


def artifacts_of(store: Path) -> dict[str, Artifact]:
    """Return the artifacts of a store by the name of their step."""
    found = [open_artifact(folder) for folder in sorted(store.glob("*-????????????"))]
    return {artifact.manifest.step: artifact for artifact in found}


def windows_of(text: str, tokenizer: Tokenizer, count: int) -> torch.Tensor:
    """Return the first tokens of a text, int64 [count, WINDOW]."""
    ids = np.array(tokenizer.encode(text, add_special_tokens=False).ids[: count * WINDOW])
    return torch.from_numpy(ids.reshape(-1, WINDOW))


def perplexity(module: Any, ids_BT: torch.Tensor) -> float:
    """Return the perplexity of all tokens but the first of each window."""
    losses = []
    with torch.inference_mode():
        for ids_T in ids_BT:
            logits_TV = module(input_ids=ids_T[None])["logits"][0, :-1].float()
            losses.append(torch.nn.functional.cross_entropy(logits_TV, ids_T[1:]))
    return float(torch.stack(losses).mean().exp())


def packaged(adapter: Artifact, base: Artifact, folder: Path) -> tuple[Path, int]:
    """Pack an adapter in 8 bits and apply the package; return the folder, and bytes of the file."""
    file, _ = make_package(adapter.model, base.model, folder, encoding="int8")
    request = Application(file, base.model, folder / "applied", None, False, False, now())
    apply_package(request)
    return folder / "applied", file.stat().st_size


def main() -> None:
    """Print a line for each model and adapter."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("store", type=Path)
    parser.add_argument("text", type=Path)
    parser.add_argument("--windows", type=int, default=6)
    arguments = parser.parse_args()
    steps = artifacts_of(arguments.store)
    source, packed = steps["source"], steps["int4"]
    tokenizer = Tokenizer.from_file(str(source.model / "tokenizer.json"))
    domain = "\n\n".join(file.read_text() for file in sorted(arguments.text.glob("*.txt")))
    other = "\n\n".join(topics[name] for name in sorted(topics))
    texts = [windows_of(text, tokenizer, arguments.windows) for text in (domain, other)]
    with tempfile.TemporaryDirectory() as temporary:
        small, size = packaged(steps["int4-adapter"], packed, Path(temporary))
        print(f"package of 8 bits: {size:,} bytes")
        cases: list[tuple[str, Artifact, Path | None]] = [
            ("float", source, None),
            ("int4", packed, None),
            ("float, adapter trained on it", source, steps["float-adapter"].model),
            ("int4, adapter trained on it", packed, steps["int4-adapter"].model),
            ("int4, adapter of the float model", packed, steps["float-adapter"].model),
            ("float, adapter of the int4 model", source, steps["int4-adapter"].model),
            ("int4, package of 8 bits", packed, small),
        ]
        for name, base, adapter in cases:
            module = load_module(base.model).float()
            if adapter is not None:
                module = add_adapter(module, adapter)
            values = [perplexity(module, ids_BT) for ids_BT in texts]
            print(f"{name}: {values[0]:.3f} on the domain, {values[1]:.3f} on the other")


if __name__ == "__main__":
    main()
