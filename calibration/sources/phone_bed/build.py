"""Builds the bed once: glyph masks and spoken commands of every split, in a folder that is whole or not there."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from calibration.sources.phone_bed import icons
from calibration.sources.phone_bed.commands import TEMPLATES, VOICES, Language, Split
from calibration.sources.phone_bed.speak import Request, spoken
from compressor.artifacts.errors_from_os import writing
from compressor.artifacts.files import fsync_directory, fsync_tree
from compressor.artifacts.fingerprint import digest_file

SPLITS: Final[tuple[Split, ...]] = ("train", "validation", "test")
LANGUAGES: Final[tuple[Language, ...]] = ("en", "zh")
VARIANTS: Final = {"train": 24, "validation": 4, "test": 4}
"""Renderings of each glyph: size, and for training also turn, stretch, weight and blur."""
UTTERANCES: Final = {"train": 60, "validation": 10, "test": 12}
"""Spoken commands for each concept and language."""
_CHECKSUMS: Final = "checksums.json"

Progress = Callable[[str, int, int], None]
Array = np.ndarray[Any, Any]


@dataclass(frozen=True, slots=True)
class Utterance:
    """One spoken command."""

    split: Split
    language: Language
    concept: int
    template: int
    voice: int
    words_per_minute: int
    pitch: int


def utterances(per_concept: dict[str, int] | None = None) -> list[Utterance]:
    """Every command that is spoken, in a fixed order; templates, voices, rates and pitches are spread evenly."""
    counts = UTTERANCES if per_concept is None else per_concept
    table = []
    for split in SPLITS:
        for language in LANGUAGES:
            for concept in range(len(icons.concepts())):
                draw = np.random.default_rng(
                    [SPLITS.index(split), LANGUAGES.index(language), concept]
                )
                templates = _spread(draw, len(TEMPLATES[language][split]), counts[split])
                voices = _spread(draw, len(VOICES[language][split]), counts[split])
                rates = draw.integers(140, 211, counts[split])
                pitches = draw.integers(25, 76, counts[split])
                table += [
                    Utterance(split, language, concept, t, v, r, p)
                    for t, v, r, p in zip(
                        templates, voices, rates.tolist(), pitches.tolist(), strict=True
                    )
                ]
    return table


def _spread(draw: np.random.Generator, kinds: int, count: int) -> list[int]:
    """``count`` numbers below ``kinds``, each about as often, in a random order."""
    rounds = -(-count // kinds)
    numbers: list[int] = np.concatenate([draw.permutation(kinds) for _ in range(rounds)])[
        :count
    ].tolist()
    return numbers


def text_of(language: Language, split: Split, template: int, concept: int) -> str:
    """The written command."""
    words = list(icons.concepts().values())[concept][language]
    return TEMPLATES[language][split][template].format(words)


def built(folder: Path, progress: Progress, per_concept: dict[str, int] | None = None) -> Path:
    """The folder with the bed's arrays, built if it is not there or not whole.

    Raises:
        MissingExtraError: a package is not installed.
        StorageError: the cache cannot be written.
    """
    if _whole(folder):
        return folder
    with writing(folder):
        shutil.rmtree(folder, ignore_errors=True)
        folder.parent.mkdir(parents=True, exist_ok=True)
        staged = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        _build_masks(staged, progress)
        _build_speech(staged, progress, utterances(per_concept))
        sums = {path.name: digest_file(path) for path in sorted(staged.iterdir())}
        with writing(folder):
            (staged / _CHECKSUMS).write_text(json.dumps(sums), encoding="utf-8")
            fsync_tree(staged)
            _rename(staged, folder)
    finally:
        shutil.rmtree(staged, ignore_errors=True)
    return folder


def _rename(staged: Path, folder: Path) -> None:
    """Another process may have been quicker; its bed is the same."""
    try:
        staged.rename(folder)
    except OSError:
        if not _whole(folder):
            raise
    fsync_directory(folder.parent)


def _whole(folder: Path) -> bool:
    """Whether every file is as it was written."""
    file = folder / _CHECKSUMS
    if not file.is_file():
        return False
    try:
        sums: dict[str, str] = json.loads(file.read_text(encoding="utf-8"))
    except ValueError:
        return False
    return all(
        (folder / name).is_file() and digest_file(folder / name) == value
        for name, value in sums.items()
    )


def _build_masks(folder: Path, progress: Progress) -> None:
    """``masks-<split>.npy`` uint8 [glyphs, variants, CELL, CELL] and ``glyphs-<split>.npy`` int32 [glyphs, (concept, family)]."""
    fonts = icons.open_fonts()
    every = [
        (glyph, mask)
        for glyph in icons.glyphs()
        if (mask := icons.rendered(glyph, fonts)) is not None
    ]
    for index, split in enumerate(SPLITS):
        mine = [(glyph, mask) for glyph, mask in every if glyph.family in icons.FAMILIES[split]]
        families = icons.FAMILIES[split]
        facts = np.array(
            [(glyph.concept, families.index(glyph.family)) for glyph, _ in mine], dtype=np.int32
        )
        base = np.stack([mask for _, mask in mine]).astype(np.float32)
        draw = np.random.default_rng([7, index])
        with writing(folder):
            np.save(
                folder / f"masks-{split}.npy",
                _renderings(base, VARIANTS[split], draw, augment=split == "train"),
            )
            np.save(folder / f"glyphs-{split}.npy", facts)
        progress("icons", index + 1, len(SPLITS))


def _renderings(base_NSS: Array, count: int, draw: np.random.Generator, *, augment: bool) -> Array:
    """``count`` renderings of each mask: uint8 [N, count, CELL, CELL]."""
    out = np.empty((len(base_NSS), count, icons.CELL, icons.CELL), dtype=np.uint8)
    for variant in range(count):
        number = len(base_NSS)
        side = draw.uniform(0.6, 0.95, number) * icons.CELL
        stretch = np.exp(draw.normal(0, 0.1, number)) if augment else np.ones(number)
        angle = draw.normal(0, np.deg2rad(8), number) if augment else np.zeros(number)
        masks = _sampled(base_NSS, side * np.sqrt(stretch), side / np.sqrt(stretch), angle)
        if augment:
            masks = _reweighted(masks, draw)
        out[:, variant] = np.round(np.clip(masks, 0, 255))
    return out


def _sampled(base_NSS: Array, width_N: Array, height_N: Array, angle_N: Array) -> Array:
    """Each mask scaled to width × height pixels, turned, and centred in a cell: float [N, CELL, CELL], bilinear, 2×2 samples."""
    size = base_NSS.shape[1]
    total = np.zeros((len(base_NSS), icons.CELL, icons.CELL), dtype=np.float32)
    rows = np.arange(len(base_NSS))[:, None, None]
    padded = np.pad(base_NSS, ((0, 0), (1, 2), (1, 2)))
    for shift_y in (-0.25, 0.25):
        for shift_x in (-0.25, 0.25):
            axis = np.arange(icons.CELL) - (icons.CELL - 1) / 2
            y, x = (axis + shift_y)[None, :, None], (axis + shift_x)[None, None, :]
            cos, sin = np.cos(angle_N)[:, None, None], np.sin(angle_N)[:, None, None]
            u = (x * cos + y * sin) * (size / width_N)[:, None, None] + (size - 1) / 2 + 1
            v = (y * cos - x * sin) * (size / height_N)[:, None, None] + (size - 1) / 2 + 1
            u, v = np.clip(u, 0, size + 1), np.clip(v, 0, size + 1)
            left, top = u.astype(np.int64), v.astype(np.int64)
            du, dv = (u - left).astype(np.float32), (v - top).astype(np.float32)
            upper = padded[rows, top, left] * (1 - du) + padded[rows, top, left + 1] * du
            lower = padded[rows, top + 1, left] * (1 - du) + padded[rows, top + 1, left + 1] * du
            total += upper * (1 - dv) + lower * dv
    return total / 4


def _reweighted(masks_NCC: Array, draw: np.random.Generator) -> Array:
    """Heavier or lighter strokes (a blend with the dilated or eroded mask), and sometimes a blur."""
    shifts = [
        np.roll(masks_NCC, (dy, dx), axis=(1, 2))
        for dy in (-1, 0, 1)
        for dx in (-1, 0, 1)
        if abs(dy) + abs(dx) < 2
    ]
    stack = np.stack(shifts)
    amount = draw.uniform(-0.7, 0.9, len(masks_NCC))[:, None, None].astype(np.float32)
    target = np.where(amount > 0, stack.max(axis=0), stack.min(axis=0))
    masks = masks_NCC + np.abs(amount) * (target - masks_NCC)
    blur = (draw.random(len(masks_NCC)) * (draw.random(len(masks_NCC)) < 0.4))[
        :, None, None
    ].astype(np.float32)
    blurred: Array = masks + blur * (stack.mean(axis=0) - masks)
    return blurred


def _build_speech(folder: Path, progress: Progress, table: list[Utterance]) -> None:
    """``mel-<split>.npy`` uint8 [utterances, MELS, FRAMES] and ``commands-<split>.npy`` int32 [utterances, 4]."""
    requests: list[Request] = [
        (
            text_of(one.language, one.split, one.template, one.concept),
            VOICES[one.language][one.split][one.voice],
            one.words_per_minute,
            one.pitch,
        )
        for one in table
    ]
    every = spoken(requests, lambda done: progress("spoken commands", done, len(table)))
    for split in SPLITS:
        mine = [index for index, one in enumerate(table) if one.split == split]
        facts = [
            (
                table[i].concept,
                LANGUAGES.index(table[i].language),
                table[i].template,
                table[i].voice,
            )
            for i in mine
        ]
        with writing(folder):
            np.save(folder / f"mel-{split}.npy", every[mine])
            np.save(folder / f"commands-{split}.npy", np.array(facts, dtype=np.int32))
