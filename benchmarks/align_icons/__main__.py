"""Retrieval of icons by their names with EfficientNet-Lite0 and all-MiniLM-L6-v2, aligned.

    python -m benchmarks.align_icons EFFICIENTNET MINILM FOLDER

EFFICIENTNET and MINILM are the folders that examples/efficientnet/prepare.py and
examples/minilm/prepare.py write. Icons and names (English, Chinese) are those of the phone bed.
Both towers are locked: their vectors are computed once, and `align` trains a head on each. Every
fifth concept is left out of the training, and the families Elusive and Remix. Steps: InfoNCE
and the sigmoid loss, batches of 64 and of 512 pairs; those of 512 in chunks of 64 (gradient
caching). Recall@1 is that of an icon among the names of all concepts in one language, which is
zero-shot classification; and of a name among all icons of the families.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from calibration.sources.phone_bed import icons
from calibration.sources.phone_bed.build import render_variants
from compressor.config.permission import allow_code
from compressor.models.checkpoint.loading import load_module

Array = np.ndarray[Any, Any]
HERE = Path(__file__).parent
SIDE, LANGUAGES, HELD_OUT = 96, ("en", "zh"), 5
SPLITS = {"train": 6, "validation": 1, "test": 1}
"""Split to renderings of each icon."""
PIPELINE = """version: 1
name: align-icons
seed: 0
threads: 1
model:
  python: towers.py:build
  inputs:
    image_vector: {{shape: [batch, 1280]}}
    input_ids: {{shape: [batch, 1], dtype: int64, below: {names}}}
  outputs: [image_embeds, text_embeds]
  measure: false
data:
  train: {{source: python, path: samples.py, arguments: {{split: train, digest: {digest}}}}}
passes:
"""
STEP = """  - type: align
    name: {loss}-{size}
    from: source
    loss: {loss}
    learn_temperature: true
    validation: null
    measure: false
    training: {{steps: {steps}, batch_size: {size}, learning_rate: 0.002, weight_decay: 0.05}}
"""


@dataclass(frozen=True, slots=True)
class Encoded:
    """Vectors of the icons of a split, [N, W], and their concepts [N]."""

    vectors: Array
    concepts: Array


def encode_icons(folder: Path) -> dict[str, Encoded]:
    """Render the icons of each split, and return EfficientNet's vectors."""
    module, fonts = load_module(folder), icons.open_fonts()
    drawn = [
        (glyph, mask)
        for glyph in icons.iterate_glyphs()
        if (mask := icons.render_glyph(glyph, fonts)) is not None
    ]
    encoded = {}
    for number, (split, count) in enumerate(SPLITS.items()):
        chosen = [pair for pair in drawn if pair[0].family in icons.FAMILIES[split]]
        masks = np.stack([mask for _, mask in chosen]).astype(np.float32)
        generator = np.random.default_rng(number)
        variants = render_variants(masks, count, generator, augment=split == "train")
        cells = torch.from_numpy(255 - variants.reshape(-1, 1, icons.CELL, icons.CELL)).float()
        images = torch.nn.functional.interpolate(cells, (SIDE, SIDE), mode="bilinear")
        pixels = images.round().to(torch.uint8).expand(-1, 3, -1, -1)
        with torch.inference_mode():
            parts = [module(image=part)["image_vector"] for part in pixels.split(64)]
        concepts = np.repeat([glyph.concept for glyph, _ in chosen], count)
        encoded[split] = Encoded(torch.cat(parts).numpy(), concepts)
    return encoded


def encode_names(folder: Path) -> Array:
    """Return MiniLM's vectors of all names, English and Chinese in turn."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    texts = [row[language] for row in icons.concepts().values() for language in LANGUAGES]
    module = load_module(folder)
    vectors = []
    for text in texts:
        ids = torch.tensor([tokenizer.encode(text).ids])
        with torch.inference_mode():
            output = module(input_ids=ids, attention_mask=torch.ones_like(ids))
        vectors.append(output["embedding"][0].numpy())
    return np.stack(vectors)


def prepare(arguments: argparse.Namespace) -> dict[str, Encoded]:
    """Write module, samples and pipeline to the folder; return the icons of each split."""
    folder: Path = arguments.folder
    folder.mkdir(parents=True, exist_ok=True)
    encoded, names = encode_icons(arguments.efficientnet), encode_names(arguments.minilm)
    np.save(folder / "names.npy", names)
    kept = encoded["train"].concepts % HELD_OUT != 0
    arrays = {
        "train_vectors": encoded["train"].vectors[kept],
        "train_concepts": encoded["train"].concepts[kept],
    }
    np.savez(folder / "icons.npz", **arrays)
    for name in ("towers.py", "samples.py"):
        shutil.copy(HERE / name, folder)
    digest = hashlib.sha256(b"".join(array.tobytes() for array in arrays.values())).hexdigest()
    steps = [
        STEP.format(loss=loss, size=size, steps=steps)
        + ("" if size <= 64 else "    chunk_size: 64\n")
        for loss in ("infonce", "sigmoid")
        for size, steps in ((64, arguments.steps), (512, arguments.steps))
    ]
    text = PIPELINE.format(names=len(names), digest=digest[:16]) + "".join(steps)
    (folder / "pipeline.yaml").write_text(text)
    return encoded


def recalls(module: torch.nn.Module, encoded: Encoded) -> dict[str, tuple[float, float]]:
    """Return recall@1 by kind of query and language: of seen and of unseen concepts."""
    names = torch.arange(2 * len(icons.concepts()))[:, None]
    vectors = torch.from_numpy(encoded.vectors)
    padded = torch.cat([vectors, vectors[:1].expand(len(names), -1)])
    ids = torch.cat([torch.zeros(len(vectors), 1, dtype=torch.int64), names])
    with torch.inference_mode():
        images, texts = module(image_vector=padded, input_ids=ids).values()
    images, texts = images[: len(vectors)], texts[len(vectors) :]
    results = {}
    for number, language in enumerate(LANGUAGES):
        products = (images @ texts[number::2].T).numpy()
        right = products.argmax(axis=1) == encoded.concepts
        results[f"icon → {language}"] = _by_concept(right, encoded.concepts)
        drawn = np.unique(encoded.concepts)
        found = encoded.concepts[products[:, drawn].argmax(axis=0)] == drawn
        results[f"{language} → icon"] = _by_concept(found, drawn)
    return results


def _by_concept(right: Array, concepts: Array) -> tuple[float, float]:
    unseen = concepts % HELD_OUT == 0
    return float(right[~unseen].mean()), float(right[unseen].mean())


def main() -> None:
    """Train the heads, and print recall@1."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("efficientnet", type=Path)
    parser.add_argument("minilm", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--steps", type=int, default=200)
    arguments = parser.parse_args()
    encoded = prepare(arguments)
    os.chdir(arguments.folder)  # the module reads its table beside its code
    allow_code()
    command = [sys.executable, "-m", "cli", "run", "pipeline.yaml", "--allow-code"]
    subprocess.run(command, check=True)
    for name in ("infonce-64", "infonce-512", "sigmoid-64", "sigmoid-512"):
        [artifact] = [
            folder
            for folder in sorted(Path("artifacts").glob("align-*"))
            if f'"step": "{name}"' in (folder / "manifest.json").read_text()
        ]
        module = load_module(artifact / "model")
        for split, families in (("validation", "Elusive"), ("test", "Remix")):
            for query, (seen, unseen) in recalls(module, encoded[split]).items():
                print(f"{name}, {families}, {query}: names seen {seen:.3f}, unseen {unseen:.3f}")


if __name__ == "__main__":
    main()
