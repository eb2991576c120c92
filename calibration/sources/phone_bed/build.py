"""Build of the glyph masks and spoken commands of all splits, in a folder that appears at once."""

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
from calibration.sources.phone_bed.speak import Request, synthesize_commands
from compressor.artifacts.errors_from_os import writing
from compressor.artifacts.files import fsync_directory, fsync_tree
from compressor.artifacts.fingerprint import digest_file

SPLITS: Final[tuple[Split, ...]] = ("train", "validation", "test")
LANGUAGES: Final[tuple[Language, ...]] = ("en", "zh")
RENDERINGS: Final = {"train": 24, "validation": 4, "test": 4}
"""Renderings of each glyph. They differ in size, and for training also in rotation, stretch, stroke
weight and blur."""
UTTERANCES: Final = {"train": 60, "validation": 10, "test": 12}
"""Spoken commands per concept and language."""
_CHECKSUMS: Final = "checksums.json"

Progress = Callable[[str, int, int], None]
Array = np.ndarray[Any, Any]


@dataclass(frozen=True, slots=True)
class Utterance:
    """One spoken command; numbers are indices into the tables of its split and language."""

    split: Split
    language: Language
    concept: int
    template: int
    voice: int
    words_per_minute: int
    pitch: int


def list_utterances(per_concept: dict[str, int] | None = None) -> list[Utterance]:
    """Return all spoken commands in a fixed order, spread evenly over templates and voices.

    Args:
        per_concept: split to the number of utterances per concept and language; by default
            ``UTTERANCES``.
    """
    counts = UTTERANCES if per_concept is None else per_concept
    utterances = []
    for split in SPLITS:
        for language in LANGUAGES:
            for concept in range(len(icons.concepts())):
                generator = np.random.default_rng(
                    [SPLITS.index(split), LANGUAGES.index(language), concept]
                )
                count = counts[split]
                templates = _draw_evenly(generator, len(TEMPLATES[language][split]), count)
                voices = _draw_evenly(generator, len(VOICES[language][split]), count)
                rates = generator.integers(140, 211, count)
                pitches = generator.integers(25, 76, count)
                utterances += [
                    Utterance(split, language, concept, template, voice, rate, pitch)
                    for template, voice, rate, pitch in zip(
                        templates, voices, rates.tolist(), pitches.tolist(), strict=True
                    )
                ]
    return utterances


def _draw_evenly(generator: np.random.Generator, kinds: int, count: int) -> list[int]:
    """Return ``count`` numbers below ``kinds`` in random order, each about equally often."""
    repetitions = -(-count // kinds)
    permutations = [generator.permutation(kinds) for _ in range(repetitions)]
    numbers: list[int] = np.concatenate(permutations)[:count].tolist()
    return numbers


def command_text(language: Language, split: Split, template: int, concept: int) -> str:
    """Return the text of a command."""
    words = list(icons.concepts().values())[concept][language]
    return TEMPLATES[language][split][template].format(words)


def build_bed(folder: Path, progress: Progress, per_concept: dict[str, int] | None = None) -> Path:
    """Return the folder of the arrays; build it if it is missing or damaged.

    Args:
        folder: the folder.
        progress: called as (activity, done, total).
        per_concept: as of ``list_utterances``.

    Raises:
        MissingExtraError: a package is not installed.
        StorageError: the folder cannot be written.
    """
    if _is_complete(folder):
        return folder
    with writing(folder):
        shutil.rmtree(folder, ignore_errors=True)
        folder.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        _build_masks(staging, progress)
        _build_speech(staging, progress, list_utterances(per_concept))
        sums = {path.name: digest_file(path) for path in sorted(staging.iterdir())}
        with writing(folder):
            (staging / _CHECKSUMS).write_text(json.dumps(sums), encoding="utf-8")
            fsync_tree(staging)
            _publish(staging, folder)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return folder


def _publish(staging: Path, folder: Path) -> None:
    """Rename the folder to its final name, unless another process has built the same meanwhile."""
    try:
        staging.rename(folder)
    except OSError:
        if not _is_complete(folder):
            raise
    fsync_directory(folder.parent)


def _is_complete(folder: Path) -> bool:
    """Return True if all files exist and match their checksums."""
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
    """Write the glyph masks of each split.

    ``masks-<split>.npy`` is uint8 [glyphs, renderings, CELL, CELL]; ``glyphs-<split>.npy`` is int32
    [glyphs, (concept, index of the family)].
    """
    fonts = icons.open_fonts()
    rendered = [
        (glyph, mask)
        for glyph in icons.iterate_glyphs()
        if (mask := icons.render_glyph(glyph, fonts)) is not None
    ]
    for index, split in enumerate(SPLITS):
        families = icons.FAMILIES[split]
        of_split = [(glyph, mask) for glyph, mask in rendered if glyph.family in families]
        facts = np.array(
            [(glyph.concept, families.index(glyph.family)) for glyph, _ in of_split],
            dtype=np.int32,
        )
        base = np.stack([mask for _, mask in of_split]).astype(np.float32)
        generator = np.random.default_rng([7, index])
        masks = render_variants(base, RENDERINGS[split], generator, augment=split == "train")
        with writing(folder):
            np.save(folder / f"masks-{split}.npy", masks)
            np.save(folder / f"glyphs-{split}.npy", facts)
        progress("icons", index + 1, len(SPLITS))


def render_variants(
    base_NSS: Array, count: int, generator: np.random.Generator, *, augment: bool
) -> Array:
    """Return ``count`` renderings of each mask, uint8 [N, count, CELL, CELL].

    Args:
        base_NSS: the masks.
        count: renderings per mask.
        generator: source of the variation.
        augment: False to vary only the size.
    """
    renderings = np.empty((len(base_NSS), count, icons.CELL, icons.CELL), dtype=np.uint8)
    for variant in range(count):
        number = len(base_NSS)
        side = generator.uniform(0.6, 0.95, number) * icons.CELL
        stretch = np.exp(generator.normal(0, 0.1, number)) if augment else np.ones(number)
        angle = generator.normal(0, np.deg2rad(8), number) if augment else np.zeros(number)
        masks = _transform(base_NSS, side * np.sqrt(stretch), side / np.sqrt(stretch), angle)
        if augment:
            masks = _vary_strokes(masks, generator)
        renderings[:, variant] = np.round(np.clip(masks, 0, 255))
    return renderings


def _transform(base_NSS: Array, width_N: Array, height_N: Array, angle_N: Array) -> Array:
    """Scale each mask to width × height pixels, rotate it, and centre it in a cell.

    Masks are sampled bilinearly at 2×2 points per pixel. Returns float32 [N, CELL, CELL].
    """
    size = base_NSS.shape[1]
    total = np.zeros((len(base_NSS), icons.CELL, icons.CELL), dtype=np.float32)
    side = size + 3
    pixels = np.pad(base_NSS, ((0, 0), (1, 2), (1, 2))).ravel()
    first_pixel = (np.arange(len(base_NSS)) * side**2)[:, None, None]
    cos, sin = np.cos(angle_N)[:, None, None], np.sin(angle_N)[:, None, None]
    for shift_y in (-0.25, 0.25):
        for shift_x in (-0.25, 0.25):
            axis = np.arange(icons.CELL) - (icons.CELL - 1) / 2
            y, x = (axis + shift_y)[None, :, None], (axis + shift_x)[None, None, :]
            u = (x * cos + y * sin) * (size / width_N)[:, None, None] + (size - 1) / 2 + 1
            v = (y * cos - x * sin) * (size / height_N)[:, None, None] + (size - 1) / 2 + 1
            u, v = np.clip(u, 0, size + 1), np.clip(v, 0, size + 1)
            left, top = u.astype(np.int64), v.astype(np.int64)
            du, dv = (u - left).astype(np.float32), (v - top).astype(np.float32)
            corner = first_pixel + top * side + left
            upper = pixels.take(corner) * (1 - du) + pixels.take(corner + 1) * du
            lower = pixels.take(corner + side) * (1 - du) + pixels.take(corner + side + 1) * du
            total += upper * (1 - dv) + lower * dv
    return total / 4


def _vary_strokes(masks_NCC: Array, generator: np.random.Generator) -> Array:
    """Blend each mask with its dilation or erosion, and blur 40 % of the masks."""
    shifts = [
        np.roll(masks_NCC, (dy, dx), axis=(1, 2))
        for dy in (-1, 0, 1)
        for dx in (-1, 0, 1)
        if abs(dy) + abs(dx) < 2
    ]
    stack = np.stack(shifts)
    count = len(masks_NCC)
    amount = generator.uniform(-0.7, 0.9, count)[:, None, None].astype(np.float32)
    extreme = np.where(amount > 0, stack.max(axis=0), stack.min(axis=0))
    masks = masks_NCC + np.abs(amount) * (extreme - masks_NCC)
    strength = generator.random(count) * (generator.random(count) < 0.4)
    blur = strength[:, None, None].astype(np.float32)
    blurred: Array = masks + blur * (stack.mean(axis=0) - masks)
    return blurred


def _build_speech(folder: Path, progress: Progress, utterances: list[Utterance]) -> None:
    """Write the spoken commands of each split.

    ``mel-<split>.npy`` is uint8 [utterances, MELS, FRAMES]; ``commands-<split>.npy`` is int32
    [utterances, (concept, index of the language, template, voice)].
    """
    requests: list[Request] = [
        (
            command_text(spoken.language, spoken.split, spoken.template, spoken.concept),
            VOICES[spoken.language][spoken.split][spoken.voice],
            spoken.words_per_minute,
            spoken.pitch,
        )
        for spoken in utterances
    ]
    frames = synthesize_commands(
        requests, lambda done: progress("spoken commands", done, len(utterances))
    )
    for split in SPLITS:
        rows = [row for row, spoken in enumerate(utterances) if spoken.split == split]
        facts = [
            (spoken.concept, LANGUAGES.index(spoken.language), spoken.template, spoken.voice)
            for spoken in (utterances[row] for row in rows)
        ]
        with writing(folder):
            np.save(folder / f"mel-{split}.npy", frames[rows])
            np.save(folder / f"commands-{split}.npy", np.array(facts, dtype=np.int32))
