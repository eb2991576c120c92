"""Samples composed on access: a pure function of seed, split, index and epoch.

Shapes: B commands, S screens, K cells, C concepts, R spoken commands, U random numbers.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, Final

import numpy as np

from calibration.sources.phone_bed import icons
from calibration.sources.phone_bed.build import LANGUAGES, SPLITS, command_text
from calibration.sources.phone_bed.commands import TEMPLATES, Split, tokens_from_text
from calibration.sources.phone_bed.espeak import FRAMES, MELS
from compressor.data.contract import Batch, Dataset

Array = np.ndarray[Any, Any]
CELLS: Final = 9
GRID: Final = 3
ABSENT: Final = 9
"""Label of a command whose concept is not on the screen."""
CLASSES: Final = (*(f"cell-{number}" for number in range(1, CELLS + 1)), "absent")
"""Names of the cells, row by row, and of ``ABSENT``, in the order of the labels."""
SCREEN: Final = GRID * icons.CELL
"""Height and width of a screen in pixels."""
_ABSENT_PART: Final = 0.1
_SPOKEN_PART: Final = {"train": 0.65, "validation": 0.5, "test": 0.5}
"""Part of the commands that are spoken; more for training, since speech takes longer to learn."""
_NOISE_STARTS: Final = 1 << 20
_COMMAND_SEED: Final = 1 << 32
"""Added to the seed for commands, so that they do not depend on the screens."""
_ATTRIBUTES_EPOCH = 1 << 40
"""Epoch for the attributes of a sample, which do not change from epoch to epoch."""


def uniform(seed: int, indices_B: Array, epoch: int, count: int) -> Array:
    """Return numbers in [0, 1), [B, count]: hashes of seed, index, epoch and position.

    The hash is splitmix64 (Steele et al. 2014), so a row does not depend on the rest of the batch.
    """
    with np.errstate(over="ignore"):
        row = indices_B.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(
            epoch
        ) * np.uint64(0xD1B54A32D192ED03)
        key = _mix(row + np.uint64(seed) * np.uint64(0x8CB92BA72F3D8DD7))
        state = key[:, None] + np.arange(1, count + 1, dtype=np.uint64)[None, :] * np.uint64(
            0x9E3779B97F4A7C15
        )
        return (_mix(state) >> np.uint64(11)) * 2.0**-53


def _mix(x: Array) -> Array:
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: Array = x ^ (x >> np.uint64(31))
    return mixed


class PhoneBedDataset(Dataset):
    """Screens of nine icons and a command; the label is the cell that the command names.

    Args:
        folder: the arrays that ``build_bed`` writes.
        split: the split.
        num_samples: the number of samples.
        seed: the seed of the samples.
        augment: True to vary samples from epoch to epoch.
        commands_per_screen: number of consecutive commands that refer to one screen.
    """

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
        commands_per_screen: int = 1,
    ) -> None:
        self.split, self.num_samples, self.augment = split, num_samples, augment
        self.commands_per_screen = commands_per_screen
        self.seed = seed * len(SPLITS) + SPLITS.index(split)
        self.masks = np.load(folder / f"masks-{split}.npy", mmap_mode="r")
        self.mels = np.load(folder / f"mel-{split}.npy", mmap_mode="r")
        glyphs = np.load(folder / f"glyphs-{split}.npy")
        commands = np.load(folder / f"commands-{split}.npy")
        self.concepts = np.unique(glyphs[:, 0])
        self._index_glyphs(glyphs)
        self._index_commands(commands)

    def _index_glyphs(self, glyphs: Array) -> None:
        """Build padded tables from concepts to families, and from both to glyphs."""
        count, families = len(icons.concepts()), int(glyphs[:, 1].max()) + 1
        groups = [
            [
                np.flatnonzero((glyphs == (concept, family)).all(axis=1))
                for family in range(families)
            ]
            for concept in range(count)
        ]
        most_glyphs = max(len(group) for row in groups for group in row)
        self.glyph_table = np.zeros((count, families, most_glyphs), dtype=np.int64)
        self.glyph_counts = np.array([[len(group) for group in row] for row in groups])
        self.family_table = np.zeros((count, families), dtype=np.int64)
        self.family_counts = (self.glyph_counts > 0).sum(axis=1)
        for concept, row in enumerate(groups):
            drawing = [family for family in range(families) if len(row[family])]
            self.family_table[concept, : len(drawing)] = drawing
            for family in drawing:
                self.glyph_table[concept, family, : len(row[family])] = row[family]

    def _index_commands(self, commands: Array) -> None:
        """Build tables from language and concept to spoken commands and to written tokens."""
        count = len(icons.concepts())
        utterances = [
            [
                np.flatnonzero((commands[:, 1] == language) & (commands[:, 0] == concept))
                for concept in range(count)
            ]
            for language in range(len(LANGUAGES))
        ]
        self.spoken_count = min(len(rows) for concepts in utterances for rows in concepts)
        self.spoken_table = np.array(
            [[rows[: self.spoken_count] for rows in concepts] for concepts in utterances]
        )
        self.template_counts = np.array(
            [len(TEMPLATES[language][self.split]) for language in LANGUAGES]
        )
        most_templates = int(self.template_counts.max())
        self.token_table = np.zeros(
            (2, count, most_templates, len(tokens_from_text(""))), dtype=np.int64
        )
        for number, language in enumerate(LANGUAGES):
            for concept in range(count):
                for template in range(self.template_counts[number]):
                    text = command_text(language, self.split, template, concept)
                    self.token_table[number, concept, template] = tokens_from_text(text)

    def __len__(self) -> int:
        return self.num_samples

    def attributes(self, indices_B: Array) -> dict[str, Array]:
        """Return the attributes of samples that are the same in all epochs, each [B].

        These are ``spoken``, ``language``, ``concept`` and ``absent`` (the concept is not on the
        screen).
        """
        draw = uniform(self.seed, indices_B, _ATTRIBUTES_EPOCH, 4)
        return {
            "spoken": draw[:, 0] < _SPOKEN_PART[self.split],
            "language": (draw[:, 1] < 0.5).astype(np.int64),
            "concept": self.concepts[(draw[:, 2] * len(self.concepts)).astype(np.int64)],
            "absent": draw[:, 3] < _ABSENT_PART,
        }

    def batch(self, indices: Array, epoch: int = 0) -> Batch:
        """Return screens, tokens, mels and labels; for training also concepts.

        ``concept`` [B] is that of the command, ``cell_concepts`` [S, K] those of the cells.
        """
        epoch = epoch if self.augment else 0
        attributes = self.attributes(indices)
        screen_of = screen_of_command(len(indices), self.commands_per_screen)
        first = indices[np.searchsorted(screen_of, np.arange(screen_of[-1] + 1))]
        keys, places, looks = np.split(
            uniform(self.seed, first, epoch, len(icons.concepts()) + CELLS + 16 * CELLS),
            [len(icons.concepts()), len(icons.concepts()) + CELLS],
            axis=1,
        )
        command_draw = uniform(self.seed + _COMMAND_SEED, indices, epoch, 12)
        cells = self._layout(attributes, screen_of, keys, places)
        matches = cells[screen_of] == attributes["concept"][:, None]
        return {
            "screen": self._screens(cells, looks.reshape(-1, CELLS, 16)),
            "tokens": self._tokens(attributes, command_draw[:, 0]),
            "mel": self._mels(attributes, command_draw[:, 1:]),
            "label": np.where(matches.any(axis=1), matches.argmax(axis=1), ABSENT),
            "concept": attributes["concept"].astype(np.int64),
            "cell_concepts": cells,
        }

    def _layout(
        self,
        attributes: Mapping[str, Array],
        screen_of_B: Array,
        keys_SC: Array,
        places_SK: Array,
    ) -> Array:
        """Return nine distinct concepts per screen, [S, K].

        They include the concepts of the screen's commands, except absent ones, and random others.
        """
        keys = np.full_like(keys_SC, 2.0)
        keys[:, self.concepts] = keys_SC[:, self.concepts]
        absent = attributes["absent"]
        for rows, key in ((absent, 3.0), (~absent, -1.0)):
            keys[screen_of_B[rows], attributes["concept"][rows]] = key
        lowest = np.argsort(keys, axis=1)[:, :CELLS].astype(np.int64)
        cells: Array = np.take_along_axis(lowest, np.argsort(places_SK, axis=1), axis=1)
        return cells

    def _screens(self, concepts_SK: Array, draw_SKU: Array) -> Array:
        """Return screens, uint8 [S, 3, 96, 96]: in each cell a shifted glyph on a background."""
        batch, side = len(concepts_SK), icons.CELL
        slot = (draw_SKU[..., 0] * self.family_counts[concepts_SK]).astype(np.int64)
        family = self.family_table[concepts_SK, slot]
        glyph = (draw_SKU[..., 1] * self.glyph_counts[concepts_SK, family]).astype(np.int64)
        glyphs = self.glyph_table[concepts_SK, family, glyph]
        variant = (draw_SKU[..., 2] * self.masks.shape[1]).astype(np.int64)
        shift = ((draw_SKU[..., 3:5] - 0.5) * 5).round().astype(np.int64)
        padded = np.zeros((batch * CELLS, side + 4, side + 4), dtype=np.uint8)
        padded[:, 2:-2, 2:-2] = self.masks[glyphs.ravel(), variant.ravel()]
        windows = np.lib.stride_tricks.sliding_window_view(padded, (side, side), axis=(1, 2))
        corner = 2 + shift.reshape(-1, 2)
        alpha = windows[np.arange(batch * CELLS), corner[:, 0], corner[:, 1]].astype(np.float32)
        back, front = self._colours(draw_SKU.reshape(batch * CELLS, -1))
        cell = back[:, :, None, None] + (front - back)[:, :, None, None] * (
            alpha[:, None] * np.float32(1 / 255)
        )
        pixels = cell.astype(np.uint8).reshape(batch, GRID, GRID, 3, side, side)
        return np.ascontiguousarray(pixels.transpose(0, 3, 1, 4, 2, 5)).reshape(
            batch, 3, GRID * side, GRID * side
        )

    def _colours(self, draw: Array) -> tuple[Array, Array]:
        """Return background and foreground colours, float32 [S · K, 3] each.

        They differ by at least 90 grey levels; which of them is lighter is random.
        """
        dark = draw[:, 5] < 0.5
        low = draw[:, 6] * 80
        high = 175 + draw[:, 7] * 80
        tint = (draw[:, 8:14] - 0.5) * 80
        back = np.where(dark, low, high)[:, None] + tint[:, :3]
        front = np.where(dark, high, low)[:, None] + tint[:, 3:]
        return np.clip(back, 0, 255).astype(np.float32), np.clip(front, 0, 255).astype(np.float32)

    def _tokens(self, attributes: Mapping[str, Array], draw_B: Array) -> Array:
        """Return the tokens of written commands, int64 [B, TOKENS]; zeros for spoken ones."""
        language = attributes["language"]
        template = (draw_B * self.template_counts[language]).astype(np.int64)
        tokens = self.token_table[language, attributes["concept"], template]
        return np.where(attributes["spoken"][:, None], 0, tokens)

    def _mels(self, attributes: Mapping[str, Array], draw_BU: Array) -> Array:
        """Return the mels of spoken commands, float32 [B, MELS, FRAMES] in [0, 1], else zeros."""
        mels = np.zeros((len(draw_BU), MELS, FRAMES), dtype=np.float32)
        rows = np.flatnonzero(attributes["spoken"])
        take = (draw_BU[rows, 0] * self.spoken_count).astype(np.int64)
        utterances = self.spoken_table[
            attributes["language"][rows], attributes["concept"][rows], take
        ]
        speech = self.mels[utterances].astype(np.float32)
        speech /= np.float32(255)
        mels[rows] = self._augment_speech(speech, draw_BU[rows, 1:]) if self.augment else speech
        return mels

    def _augment_speech(self, mel_RMF: Array, draw_RU: Array) -> Array:
        """Delay speech, change its level, add noise, and attenuate a band and a stretch; in place.

        Half of the commands get noise of a level from U(0, 0.12).
        """
        for row in range(len(mel_RMF)):
            delay = int(draw_RU[row, 0] * 12)
            if delay:
                mel_RMF[row, :, delay:] = mel_RMF[row, :, :-delay].copy()
                mel_RMF[row, :, :delay] = 0
            band, width = int(draw_RU[row, 1] * MELS), int(draw_RU[row, 2] * 14)
            mel_RMF[row, band : band + width] *= 0.3
            start, length = int(draw_RU[row, 3] * FRAMES), int(draw_RU[row, 4] * 18)
            mel_RMF[row, :, start : start + length] *= 0.3
        silence = mel_RMF <= 0
        mel_RMF += ((draw_RU[:, 5] - 0.5) * 0.3)[:, None, None].astype(np.float32)
        level = (np.maximum(0, draw_RU[:, 6] - 0.5) * 0.24).astype(np.float32)
        noisy = np.flatnonzero(level)
        noise = _noise()[(draw_RU[noisy, 7] * _NOISE_STARTS).astype(np.int64)]
        noise *= level[noisy, None]
        mel_RMF[noisy] += noise.reshape(-1, *mel_RMF.shape[1:])
        np.clip(mel_RMF, 1 / 255, 1, out=mel_RMF)
        mel_RMF[silence] = 0
        return mel_RMF

    def slices(self) -> Mapping[str, Array]:
        """Return slices by kind of command, by language, and by both."""
        attributes = self.attributes(np.arange(self.num_samples, dtype=np.int64))
        kinds = np.where(attributes["spoken"], "speech", "text")
        languages = np.array(LANGUAGES)[attributes["language"]]
        return {
            "input": kinds,
            "language": languages,
            "input×language": np.char.add(np.char.add(kinds, "×"), languages),
        }

    def strata(self) -> Mapping[str, Array]:
        """Return strata by kind and language together, and by the concept of the command."""
        attributes = self.attributes(np.arange(self.num_samples, dtype=np.int64))
        names = np.array(list(icons.concepts()))
        slices = self.slices()
        return {
            "command": np.char.add(np.char.add(slices["input"], "/"), slices["language"]),
            "concept": names[attributes["concept"]],
        }

    def class_names(self) -> tuple[str, ...]:
        """Return the names of the nine cells, row by row, and ``absent``."""
        return CLASSES


def screen_of_command(commands: int, commands_per_screen: int) -> Array:
    """Return the index of each command's screen, int64 [B].

    There are ⌈commands / commands_per_screen⌉ screens with about equally many commands each.
    """
    screens = -(-commands // commands_per_screen)
    return np.arange(commands, dtype=np.int64) // -(-commands // screens)


@cache
def _noise() -> Array:
    """Return windows of one long row of normal noise, [_NOISE_STARTS, MELS · FRAMES]."""
    generator = np.random.default_rng(0)
    row = generator.standard_normal(_NOISE_STARTS + MELS * FRAMES - 1, dtype=np.float32)
    return np.lib.stride_tricks.sliding_window_view(row, MELS * FRAMES)
