"""Samples of the bed, composed when they are asked for: a pure function of (seed, split, index, epoch).

Shapes: B commands, S screens, K cells, C concepts.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, Final

import numpy as np

from calibration.sources.phone_bed import icons
from calibration.sources.phone_bed.build import LANGUAGES, SPLITS, text_of
from calibration.sources.phone_bed.commands import TEMPLATES, Split, tokens_from_text
from calibration.sources.phone_bed.espeak import FRAMES, MELS
from compressor.data.contract import Batch, Dataset

Array = np.ndarray[Any, Any]
CELLS: Final = 9
GRID: Final = 3
ABSENT: Final = 9
"""The label of a command whose concept is not on the screen."""
_ABSENT_PART: Final = 0.1
_SPOKEN_PART: Final = {"train": 0.65, "validation": 0.5, "test": 0.5}
"""Speech is learnt far more slowly than text, so training hears more than it reads."""
_STARTS: Final = 1 << 20
_SAYING: Final = 1 << 32
"""Added to the seed of what is said, so that it does not hang on what is shown."""
_IDENTITY = 1 << 40
"""An epoch that never comes: what a sample is must not change from epoch to epoch."""


def uniform(seed: int, indices_B: Array, epoch: int, count: int) -> Array:
    """[B, count] numbers in [0, 1), each a hash of (seed, index, epoch, position) (splitmix64, Steele et al. 2014)."""
    with np.errstate(over="ignore"):
        row = indices_B.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(
            epoch
        ) * np.uint64(0xD1B54A32D192ED03)
        key = _mixed(row + np.uint64(seed) * np.uint64(0x8CB92BA72F3D8DD7))
        state = key[:, None] + np.arange(1, count + 1, dtype=np.uint64)[None, :] * np.uint64(
            0x9E3779B97F4A7C15
        )
        return (_mixed(state) >> np.uint64(11)) * 2.0**-53


def _mixed(x: Array) -> Array:
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: Array = x ^ (x >> np.uint64(31))
    return mixed


class PhoneBedDataset(Dataset):
    """Screens of nine icons, a command, and which cell it means."""

    input_names = ("screen", "tokens", "mel")
    label_name = "label"

    def __init__(
        self,
        folder: Path,
        split: Split,
        num_samples: int,
        seed: int,
        *,
        augment: bool,
        together: int = 1,
    ) -> None:
        self.split, self.num_samples, self.augment, self.together = (
            split,
            num_samples,
            augment,
            together,
        )
        self.seed = seed * len(SPLITS) + SPLITS.index(split)
        self.masks = np.load(folder / f"masks-{split}.npy", mmap_mode="r")
        self.mels = np.load(folder / f"mel-{split}.npy", mmap_mode="r")
        glyphs = np.load(folder / f"glyphs-{split}.npy")
        commands = np.load(folder / f"commands-{split}.npy")
        self.concepts = np.unique(glyphs[:, 0])
        self._index_glyphs(glyphs)
        self._index_commands(commands)

    def _index_glyphs(self, glyphs: Array) -> None:
        """Concept → families that draw it → glyphs: padded tables, so that a choice is two look-ups."""
        count, families = len(icons.concepts()), int(glyphs[:, 1].max()) + 1
        groups = [
            [np.flatnonzero((glyphs == (c, f)).all(axis=1)) for f in range(families)]
            for c in range(count)
        ]
        widest = max(len(group) for row in groups for group in row)
        self.glyph_table = np.zeros((count, families, widest), dtype=np.int64)
        self.glyph_counts = np.array([[len(group) for group in row] for row in groups])
        self.family_table = np.zeros((count, families), dtype=np.int64)
        self.family_counts = (self.glyph_counts > 0).sum(axis=1)
        for concept, row in enumerate(groups):
            drawn = [family for family in range(families) if len(row[family])]
            self.family_table[concept, : len(drawn)] = drawn
            for family in drawn:
                self.glyph_table[concept, family, : len(row[family])] = row[family]

    def _index_commands(self, commands: Array) -> None:
        """(language, concept) → spoken commands; and the tokens of every written one."""
        count = len(icons.concepts())
        spoken = [
            [
                np.flatnonzero((commands[:, 1] == language) & (commands[:, 0] == concept))
                for concept in range(count)
            ]
            for language in range(len(LANGUAGES))
        ]
        self.spoken_count = min(len(found) for language in spoken for found in language)
        self.spoken_table = np.array(
            [[found[: self.spoken_count] for found in language] for language in spoken]
        )
        self.template_counts = np.array(
            [len(TEMPLATES[language][self.split]) for language in LANGUAGES]
        )
        widest = int(self.template_counts.max())
        self.token_table = np.zeros((2, count, widest, len(tokens_from_text(""))), dtype=np.int64)
        for number, language in enumerate(LANGUAGES):
            for concept in range(count):
                for template in range(self.template_counts[number]):
                    text = text_of(language, self.split, template, concept)
                    self.token_table[number, concept, template] = tokens_from_text(text)

    def __len__(self) -> int:
        return self.num_samples

    def identity(self, indices_B: Array) -> dict[str, Array]:
        """What never changes of a sample: whether it is spoken, its language, its concept, and whether that is absent."""
        draw = uniform(self.seed, indices_B, _IDENTITY, 4)
        return {
            "spoken": draw[:, 0] < _SPOKEN_PART[self.split],
            "language": (draw[:, 1] < 0.5).astype(np.int64),
            "concept": self.concepts[(draw[:, 2] * len(self.concepts)).astype(np.int64)],
            "absent": draw[:, 3] < _ABSENT_PART,
        }

    def batch(self, indices: Array, epoch: int = 0) -> Batch:
        """Screens, tokens, mels, labels; and for training, the concept commanded and those of the cells."""
        epoch = epoch if self.augment else 0
        who = self.identity(indices)
        screen_of = screen_of_command(len(indices), self.together)
        first = indices[np.searchsorted(screen_of, np.arange(screen_of[-1] + 1))]
        keys, places, looks = np.split(
            uniform(self.seed, first, epoch, len(icons.concepts()) + CELLS + 16 * CELLS),
            [len(icons.concepts()), len(icons.concepts()) + CELLS],
            axis=1,
        )
        said = uniform(self.seed + _SAYING, indices, epoch, 12)
        cells = self._layout(who, screen_of, keys, places)
        asked = cells[screen_of] == who["concept"][:, None]
        return {
            "screen": self._screens(cells, looks.reshape(-1, CELLS, 16)),
            "tokens": self._tokens(who, said[:, 0]),
            "mel": self._mels(who, said[:, 1:]),
            "label": np.where(asked.any(axis=1), asked.argmax(axis=1), ABSENT),
            "concept": who["concept"].astype(np.int64),
            "cell_concepts": cells,
        }

    def _layout(
        self, who: Mapping[str, Array], screen_of_B: Array, keys_SC: Array, places_SK: Array
    ) -> Array:
        """Nine distinct concepts a screen [S, K]: what its commands ask for, nothing that one of them misses, and others."""
        keys = np.full_like(keys_SC, 2.0)
        keys[:, self.concepts] = keys_SC[:, self.concepts]
        for wanted, key in ((who["absent"], 3.0), (~who["absent"], -1.0)):
            keys[screen_of_B[wanted], who["concept"][wanted]] = key
        shown = np.argsort(keys, axis=1)[:, :CELLS].astype(np.int64)
        cells: Array = np.take_along_axis(shown, np.argsort(places_SK, axis=1), axis=1)
        return cells

    def _screens(self, concepts_BK: Array, draw_BKU: Array) -> Array:
        """uint8 [S, 3, 96, 96]: each cell a glyph in one colour on another, moved a little."""
        batch, side = len(concepts_BK), icons.CELL
        slot = (draw_BKU[..., 0] * self.family_counts[concepts_BK]).astype(np.int64)
        family = self.family_table[concepts_BK, slot]
        glyph = (draw_BKU[..., 1] * self.glyph_counts[concepts_BK, family]).astype(np.int64)
        chosen = self.glyph_table[concepts_BK, family, glyph]
        variant = (draw_BKU[..., 2] * self.masks.shape[1]).astype(np.int64)
        shift = ((draw_BKU[..., 3:5] - 0.5) * 5).round().astype(np.int64)
        padded = np.zeros((batch * CELLS, side + 4, side + 4), dtype=np.uint8)
        padded[:, 2:-2, 2:-2] = self.masks[chosen.ravel(), variant.ravel()]
        windows = np.lib.stride_tricks.sliding_window_view(padded, (side, side), axis=(1, 2))
        moved = 2 + shift.reshape(-1, 2)
        alpha = windows[np.arange(batch * CELLS), moved[:, 0], moved[:, 1]].astype(np.float32)
        back, front = self._colours(draw_BKU.reshape(batch * CELLS, -1))
        cell = back[:, :, None, None] + (front - back)[:, :, None, None] * (
            alpha[:, None] * np.float32(1 / 255)
        )
        pixels = cell.astype(np.uint8).reshape(batch, GRID, GRID, 3, side, side)
        return np.ascontiguousarray(pixels.transpose(0, 3, 1, 4, 2, 5)).reshape(
            batch, 3, GRID * side, GRID * side
        )

    def _colours(self, draw: Array) -> tuple[Array, Array]:
        """Background and foreground, float32 [B·9, 3] each, at least 90 levels of grey apart, light on dark or dark on light."""
        dark = draw[:, 5] < 0.5
        low = draw[:, 6] * 80
        high = 175 + draw[:, 7] * 80
        tint = (draw[:, 8:14] - 0.5) * 80
        back = np.where(dark, low, high)[:, None] + tint[:, :3]
        front = np.where(dark, high, low)[:, None] + tint[:, 3:]
        return np.clip(back, 0, 255).astype(np.float32), np.clip(front, 0, 255).astype(np.float32)

    def _tokens(self, who: Mapping[str, Array], draw_B: Array) -> Array:
        language = who["language"]
        template = (draw_B * self.template_counts[language]).astype(np.int64)
        tokens = self.token_table[language, who["concept"], template]
        return np.where(who["spoken"][:, None], 0, tokens)

    def _mels(self, who: Mapping[str, Array], draw_BU: Array) -> Array:
        """float32 [B, 80, frames] in [0, 1]; all zeros when the command is written."""
        mels = np.zeros((len(draw_BU), MELS, FRAMES), dtype=np.float32)
        rows = np.flatnonzero(who["spoken"])
        take = (draw_BU[rows, 0] * self.spoken_count).astype(np.int64)
        chosen = self.spoken_table[who["language"][rows], who["concept"][rows], take]
        spoken = self.mels[chosen].astype(np.float32) / np.float32(255)
        mels[rows] = self._disturbed(spoken, draw_BU[rows, 1:]) if self.augment else spoken
        return mels

    def _disturbed(self, mel_RMF: Array, draw_RU: Array) -> Array:
        """Shifted in time, louder or softer, noise from U(0, 0.12) on half of them, one band and one stretch of time masked."""
        for row in range(len(mel_RMF)):
            late = int(draw_RU[row, 0] * 12)
            if late:
                mel_RMF[row, :, late:] = mel_RMF[row, :, :-late].copy()
                mel_RMF[row, :, :late] = 0
            band, width = int(draw_RU[row, 1] * MELS), int(draw_RU[row, 2] * 14)
            mel_RMF[row, band : band + width] *= 0.3
            start, length = int(draw_RU[row, 3] * FRAMES), int(draw_RU[row, 4] * 18)
            mel_RMF[row, :, start : start + length] *= 0.3
        sound = mel_RMF > 0
        gain = ((draw_RU[:, 5] - 0.5) * 0.3)[:, None, None].astype(np.float32)
        level = (np.maximum(0, draw_RU[:, 6] - 0.5) * 0.24)[:, None, None].astype(np.float32)
        noise = _noise()[(draw_RU[:, 7] * _STARTS).astype(np.int64)].reshape(mel_RMF.shape)
        disturbed: Array = np.where(sound, np.clip(mel_RMF + gain + level * noise, 1 / 255, 1), 0)
        return disturbed

    def slices(self) -> Mapping[str, Array]:
        """By kind of command, by language, and by both."""
        who = self.identity(np.arange(self.num_samples, dtype=np.int64))
        kinds = np.where(who["spoken"], "speech", "text")
        languages = np.array(LANGUAGES)[who["language"]]
        return {
            "input": kinds,
            "language": languages,
            "input×language": np.char.add(np.char.add(kinds, "×"), languages),
        }

    def strata(self) -> Mapping[str, Array]:
        """By kind and language together, and by the concept that is asked for."""
        who = self.identity(np.arange(self.num_samples, dtype=np.int64))
        names = np.array(list(icons.concepts()))
        slices = self.slices()
        return {
            "command": np.char.add(np.char.add(slices["input"], "/"), slices["language"]),
            "concept": names[who["concept"]],
        }

    def class_names(self) -> tuple[str, ...]:
        """The nine cells, row by row, then absent."""
        return (*(f"cell-{number}" for number in range(1, CELLS + 1)), "absent")


def screen_of_command(commands: int, together: int) -> Array:
    """Which screen each of the commands of a batch is about, int64 [B]: ⌈B / together⌉ screens, as even as they go."""
    screens = -(-commands // together)
    return np.arange(commands, dtype=np.int64) // -(-commands // screens)


@cache
def _noise() -> Array:
    """[_STARTS, MELS · FRAMES] windows of one long row of normal noise."""
    row = np.random.default_rng(0).standard_normal(_STARTS + MELS * FRAMES - 1, dtype=np.float32)
    return np.lib.stride_tricks.sliding_window_view(row, MELS * FRAMES)
