"""Retrieval of icons by their names with EfficientNet-Lite0 and all-MiniLM-L6-v2, aligned.

    python -m benchmarks.align_icons EFFICIENTNET MINILM FOLDER [--phone TEACHER]

EFFICIENTNET and MINILM are the folders that examples/efficientnet/prepare.py and
examples/minilm/prepare.py write. Icons and names (English, Chinese) are those of the phone bed.
Both towers are locked: their vectors are computed once, and `align` trains a head on each. Every
fifth concept is left out of the training, and the families Elusive and Remix. Steps: InfoNCE
and the sigmoid loss, batches of 64 and of 512 pairs; those of 512 in chunks of 64 (gradient
caching). `more-names` is also trained on 2,000 other icons of the fonts with their English names,
none of which has a word of the concepts that were left out. Recall@1 is that of an icon among the
names of all concepts in one language, which is zero-shot classification, and for those left out
among these alone too; and of a name among all icons of the families. TEACHER is the teacher of
examples/phone, which trains an alignment of its own on all names.
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

from benchmarks.align_icons import glyph_names, phone
from calibration.sources.phone_bed import icons
from calibration.sources.phone_bed.build import render_variants
from compressor.config.permission import allow_code
from compressor.models.checkpoint.loading import load_module

Array = np.ndarray[Any, Any]
HERE = Path(__file__).parent
SIDE, LANGUAGES, HELD_OUT = 96, ("en", "zh"), 5
OTHERS, CHUNK = 2000, 64
STEPS = {
    "infonce-64": ("infonce", 64, "train"),
    "infonce-512": ("infonce", 512, "train"),
    "sigmoid-64": ("sigmoid", 64, "train"),
    "sigmoid-512": ("sigmoid", 512, "train"),
    "more-names": ("infonce", 512, "more"),
}
"""Step to its loss, pairs of a batch, and data set."""
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
  more: {{source: python, path: samples.py, arguments: {{split: more, digest: {digest}}}}}
passes:
"""
STEP = """  - type: align
    name: {name}
    from: source
    train: {train}
    loss: {loss}
    learn_temperature: true
    validation: null
    measure: false
    training: {{steps: {steps}, batch_size: {size}, learning_rate: 0.002, weight_decay: 0.05}}
"""


@dataclass(frozen=True, slots=True)
class Encoded:
    """Icons of a split, uint8 [N, side, side], their vectors [N, W] and concepts [N]."""

    cells: Array
    vectors: Array
    concepts: Array


class IconEncoder:
    """EfficientNet's vectors of rendered icons."""

    def __init__(self, folder: Path) -> None:
        self.module = load_module(folder)

    def encode(self, masks: Array, count: int, seed: int, *, augment: bool) -> tuple[Array, Array]:
        """Return ``count`` renderings of each icon, uint8 [N, side, side], and their vectors."""
        generator = np.random.default_rng(seed)
        variants = render_variants(masks.astype(np.float32), count, generator, augment=augment)
        cells = 255 - variants.reshape(-1, icons.CELL, icons.CELL)
        pixels = torch.from_numpy(cells)[:, None].float()
        images = torch.nn.functional.interpolate(pixels, (SIDE, SIDE), mode="bilinear")
        images = images.round().to(torch.uint8).expand(-1, 3, -1, -1)
        with torch.inference_mode():
            parts = [self.module(image=part)["image_vector"] for part in images.split(64)]
        return cells, torch.cat(parts).numpy()


def encode_icons(encoder: IconEncoder) -> dict[str, Encoded]:
    """Render and encode the icons of each split."""
    fonts = icons.open_fonts()
    drawn = [
        (glyph, mask)
        for glyph in icons.iterate_glyphs()
        if (mask := icons.render_glyph(glyph, fonts)) is not None
    ]
    encoded = {}
    for number, (split, count) in enumerate(SPLITS.items()):
        chosen = [pair for pair in drawn if pair[0].family in icons.FAMILIES[split]]
        masks = np.stack([mask for _, mask in chosen])
        cells, vectors = encoder.encode(masks, count, number, augment=split == "train")
        concepts = np.repeat([glyph.concept for glyph, _ in chosen], count)
        encoded[split] = Encoded(cells, vectors, concepts)
    return encoded


def encode_texts(folder: Path, texts: list[str]) -> Array:
    """Return MiniLM's vectors of texts."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    rows = [tokenizer.encode(text).ids for text in texts]
    module, vectors = load_module(folder), {}
    for length in sorted({len(row) for row in rows}):  # texts of equal length need no padding
        numbers = [number for number, row in enumerate(rows) if len(row) == length]
        ids = torch.tensor([rows[number] for number in numbers])
        with torch.inference_mode():
            output = module(input_ids=ids, attention_mask=torch.ones_like(ids))["embedding"]
        vectors.update(zip(numbers, output.numpy(), strict=True))
    return np.stack([vectors[number] for number in range(len(texts))])


def prepare(arguments: argparse.Namespace) -> dict[str, Encoded]:
    """Write module, samples and pipeline to the folder; return the icons of each split."""
    folder: Path = arguments.folder
    folder.mkdir(parents=True, exist_ok=True)
    encoder, concepts = IconEncoder(arguments.efficientnet), list(icons.concepts().values())
    encoded = encode_icons(encoder)
    left_out = glyph_names.words_of(concepts[::HELD_OUT])
    others = glyph_names.other_glyphs(OTHERS, left_out)
    masks, other_names = glyph_names.render_others(others, icons.open_fonts())
    other_vectors = encoder.encode(masks, 1, len(SPLITS), augment=True)[1]
    texts = [row[language] for row in concepts for language in LANGUAGES] + other_names
    np.save(folder / "names.npy", encode_texts(arguments.minilm, texts))
    train = encoded["train"]
    kept = np.flatnonzero(train.concepts % HELD_OUT != 0)
    pairs = np.repeat(kept, 2), (2 * train.concepts[kept, None] + np.arange(2)).ravel()
    positions = np.arange(len(other_names))
    more = len(train.vectors) + positions, 2 * len(concepts) + positions
    arrays = {
        "vectors": np.concatenate([train.vectors, other_vectors]),
        "train_icons": pairs[0],
        "train_names": pairs[1],
        "more_icons": np.concatenate([pairs[0], more[0]]),
        "more_names": np.concatenate([pairs[1], more[1]]),
    }
    np.savez(folder / "icons.npz", **arrays)
    for name in ("towers.py", "samples.py"):
        shutil.copy(HERE / name, folder)
    digest = hashlib.sha256(b"".join(array.tobytes() for array in arrays.values())).hexdigest()
    text = PIPELINE.format(names=len(texts), digest=digest[:16]) + _steps(arguments)
    (folder / "pipeline.yaml").write_text(text)
    return encoded


def _steps(arguments: argparse.Namespace) -> str:
    """Return the steps of the pipeline in YAML."""
    return "".join(
        STEP.format(name=name, loss=loss, size=size, steps=arguments.steps, train=train)
        + ("" if size <= CHUNK else f"    chunk_size: {CHUNK}\n")
        for name, (loss, size, train) in STEPS.items()
        if name in arguments.only
    )


def products_of(module: torch.nn.Module, encoded: Encoded) -> Array:
    """Return the products of icons and the names of concepts, [N, names]."""
    names = torch.arange(len(LANGUAGES) * len(icons.concepts()))[:, None]
    vectors = torch.from_numpy(encoded.vectors)
    padded = torch.cat([vectors, vectors[:1].expand(len(names), -1)])
    ids = torch.cat([torch.zeros(len(vectors), 1, dtype=torch.int64), names])
    with torch.inference_mode():
        images, texts = module(image_vector=padded, input_ids=ids).values()
    return (images[: len(vectors)] @ texts[len(vectors) :].T).numpy()


def print_recalls(label: str, products: Array, concepts: Array) -> None:
    """Print recall@1 by kind of query and language: of seen and of unseen concepts."""
    unseen = np.arange(len(icons.concepts())) % HELD_OUT == 0
    is_new = unseen[concepts]
    for number, language in enumerate(LANGUAGES):
        scores = products[:, number :: len(LANGUAGES)]
        right = scores.argmax(axis=1) == concepts
        among = np.flatnonzero(unseen)[scores[is_new][:, unseen].argmax(axis=1)]
        drawn = np.unique(concepts)
        found = concepts[scores[:, drawn].argmax(axis=0)] == drawn
        print(
            f"{label}, {language}: icon → name, seen {right[~is_new].mean():.3f}, "
            f"unseen {right[is_new].mean():.3f}, "
            f"among the unseen {(among == concepts[is_new]).mean():.3f}; "
            f"name → icon, seen {found[~unseen[drawn]].mean():.3f}, "
            f"unseen {found[unseen[drawn]].mean():.3f}"
        )


def main() -> None:
    """Train the heads, and print recall@1."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("efficientnet", type=Path)
    parser.add_argument("minilm", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--phone", type=Path, help="model folder of examples/phone's teacher")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--only", nargs="+", choices=STEPS, default=list(STEPS))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    encoded = prepare(arguments)
    families = (("validation", "Elusive"), ("test", "Remix"))
    if arguments.phone is not None:
        rows = icons.concepts().values()
        texts = [row[language] for row in rows for language in LANGUAGES]
        for split, family in families:
            scores = phone.products(arguments.phone, encoded[split].cells, texts)
            print_recalls(
                f"phone model (all names seen), {family}", scores, encoded[split].concepts
            )
    os.chdir(arguments.folder)  # the module reads its table beside its code
    allow_code()
    command = [sys.executable, "-m", "cli", "run", "pipeline.yaml", "--allow-code"]
    subprocess.run(command, check=True)
    for name in arguments.only:
        [artifact] = [
            folder
            for folder in sorted(Path("artifacts").glob("align-*"))
            if f'"step": "{name}"' in (folder / "manifest.json").read_text()
        ]
        module = load_module(artifact / "model")
        for split, family in families:
            scores = products_of(module, encoded[split])
            print_recalls(f"{name}, {family}", scores, encoded[split].concepts)


if __name__ == "__main__":
    main()
