from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from calibration.sources.phone_bed import build, icons
from calibration.sources.phone_bed.commands import TEMPLATES, TOKENS, VARIANTS, tokens_from_text
from calibration.sources.phone_bed.dataset import ABSENT, PhoneBedDataset, uniform
from calibration.sources.phone_bed.espeak import FRAMES, MELS, log_mel, mel_filters, resampled

FEW = {"train": 2, "validation": 1, "test": 1}


@pytest.fixture(scope="session")
def bed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bed with few spoken commands, built once for all tests."""
    return build.built(tmp_path_factory.mktemp("bed") / "bed", lambda *_: None, FEW)


def dataset(
    bed: Path, split: str, *, augment: bool = False, seed: int = 0, together: int = 1
) -> PhoneBedDataset:
    return PhoneBedDataset(bed, split, 600, seed, augment=augment, together=together)


def test_no_family_speaker_or_template_is_in_two_splits() -> None:
    for table in (icons.FAMILIES, VARIANTS, *TEMPLATES.values()):
        everything = [one for split in table.values() for one in split]
        assert len(everything) == len(set(everything))
    codes = {(glyph.font, glyph.codepoint): glyph.family for glyph in icons.glyphs()}
    assert set(codes.values()) == {one for split in icons.FAMILIES.values() for one in split}


def test_the_table_of_concepts_keeps_its_promise() -> None:
    table = icons.concepts()
    drawn: dict[int, set[str]] = {}
    for glyph in icons.glyphs():
        drawn.setdefault(glyph.concept, set()).add(glyph.family)
    assert len(table) >= 48
    assert sum(len(families) >= 4 for families in drawn.values()) >= 48
    assert all(families & set(icons.FAMILIES["train"]) for families in drawn.values()), (
        "training draws every concept"
    )
    words = [row[language] for row in table.values() for language in ("en", "zh")]
    assert len(words) == len(set(words))


def test_names_in_the_table_exist_in_the_fonts() -> None:
    named = {
        (c, f)
        for c, row in enumerate(icons.concepts().values())
        for f in row
        if f not in {"en", "zh"}
    }
    found = {(glyph.concept, glyph.family) for glyph in icons.glyphs()}
    assert named == found


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_labels_say_what_is_on_the_screen(bed: Path, split: str) -> None:
    samples = dataset(bed, split, augment=split == "train")
    batch = samples.batch(np.arange(600, dtype=np.int64))
    for cells, concept, label in zip(
        batch["cell_concepts"], batch["concept"], batch["label"], strict=True
    ):
        assert len(set(cells.tolist())) == 9
        assert (concept not in cells) if label == ABSENT else cells[label] == concept
    assert 0.05 < (batch["label"] == ABSENT).mean() < 0.16
    assert batch["screen"].shape == (600, 3, 96, 96)
    assert batch["screen"].dtype == np.uint8
    assert batch["mel"].shape == (600, MELS, FRAMES)


@pytest.mark.parametrize("together", [4, 9])
def test_commands_about_one_screen_find_what_they_ask_for(bed: Path, together: int) -> None:
    samples = dataset(bed, "train", augment=True, together=together)
    batch = samples.batch(np.arange(94, dtype=np.int64))
    screens = -(-94 // together)
    assert batch["screen"].shape[0] == batch["cell_concepts"].shape[0] == screens
    wanted = samples.identity(np.arange(94, dtype=np.int64))
    for row, (concept, label) in enumerate(zip(batch["concept"], batch["label"], strict=True)):
        cells = batch["cell_concepts"][row // -(-94 // screens)].tolist()
        assert len(set(cells)) == 9
        assert (concept not in cells) if label == ABSENT else cells[label] == concept
        assert label != ABSENT or wanted["absent"][row]
    cells = batch["label"][batch["label"] != ABSENT]
    assert np.bincount(cells, minlength=9).min() > 0


def test_a_command_is_written_or_spoken_and_slices_tell_which(bed: Path) -> None:
    samples = dataset(bed, "test")
    batch, slices = samples.batch(np.arange(600, dtype=np.int64)), samples.slices()
    written, spoken = batch["tokens"].any(axis=1), batch["mel"].any(axis=(1, 2))
    assert (written ^ spoken).all()
    assert (np.where(spoken, "speech", "text") == slices["input"]).all()
    for row in np.flatnonzero(written)[:50]:
        text = bytes((batch["tokens"][row][batch["tokens"][row] > 0] - 1).tolist()).decode()
        assert (slices["language"][row] == "en") == text.isascii() or "QR" in text or "wifi" in text
        words = list(icons.concepts().values())[batch["concept"][row]][slices["language"][row]]
        assert words in text


def test_accuracy_is_told_of_text_and_speech_in_each_language(bed: Path) -> None:
    samples = dataset(bed, "test")
    slices = samples.slices()
    assert set(slices) == {"input", "language", "input×language"}
    expected = [
        f"{kind}×{language}"
        for kind, language in zip(slices["input"], slices["language"], strict=True)
    ]
    assert slices["input×language"].tolist() == expected
    assert set(expected) == {"text×zh", "text×en", "speech×zh", "speech×en"}
    assert set(samples.strata()) == {"command", "concept"}, (
        "what training weighs by is another thing"
    )
    assert set(samples.strata()["command"]) == {"text/zh", "text/en", "speech/zh", "speech/en"}


def test_samples_are_a_pure_function_of_their_indices_and_epoch(bed: Path) -> None:
    train, test = dataset(bed, "train", augment=True), dataset(bed, "test")
    indices = np.array([5, 3, 500], dtype=np.int64)
    for samples in (train, test):
        again = type(samples)(bed, samples.split, 600, 0, augment=samples.augment)
        one, two = samples.batch(indices, 4), again.batch(indices, 4)
        assert all((one[name] == two[name]).all() for name in one)
    assert (train.batch(indices, 1)["screen"] != train.batch(indices, 2)["screen"]).any()
    assert (train.batch(indices, 1)["concept"] == train.batch(indices, 2)["concept"]).all()
    assert (test.batch(indices, 1)["screen"] == test.batch(indices, 2)["screen"]).all()
    assert (
        dataset(bed, "test", seed=1).batch(indices)["screen"] != test.batch(indices)["screen"]
    ).any()


def test_icons_are_seen_against_their_background(bed: Path) -> None:
    screen = dataset(bed, "test").batch(np.arange(50, dtype=np.int64))["screen"].astype(int)
    cells = screen.reshape(50, 3, 3, 32, 3, 32).transpose(0, 2, 4, 1, 3, 5).reshape(450, 3, -1)
    assert ((cells.max(axis=2) - cells.min(axis=2)).max(axis=1) > 50).all()


def test_building_twice_gives_the_same_bytes_and_damage_is_noticed(
    bed: Path, tmp_path: Path
) -> None:
    again = build.built(tmp_path / "bed", lambda *_: None, FEW)
    names = sorted(path.name for path in bed.iterdir())
    assert all((bed / name).read_bytes() == (again / name).read_bytes() for name in names)
    victim = again / "mel-test.npy"
    content = bytearray(victim.read_bytes())
    content[-1] ^= 1
    victim.write_bytes(content)
    build.built(tmp_path / "bed", lambda *_: None, FEW)
    assert victim.read_bytes() == (bed / "mel-test.npy").read_bytes()


def test_random_numbers_are_uniform_and_independent_of_the_batch() -> None:
    draw = uniform(3, np.arange(2000, dtype=np.int64), 7, 8)
    assert (uniform(3, np.array([17], dtype=np.int64), 7, 8) == draw[17]).all()
    assert np.abs(draw.mean(axis=0) - 0.5).max() < 0.03
    assert np.abs(np.corrcoef(draw.T) - np.eye(8)).max() < 0.1


def test_mel_frames_find_a_tone_where_it_is() -> None:
    time = np.arange(22_050) / 22_050
    mel = log_mel(resampled(np.sin(2 * np.pi * 1000 * time).astype(np.float32), 22_050))
    assert mel.shape == (MELS, 98)
    centre = mel_filters().argmax(axis=1)[mel[:, 50].argmax()] * 16_000 / 512
    assert abs(centre - 1000) < 60
    assert mel.min() >= 1


def test_tokens_never_cut_a_character() -> None:
    assert tokens_from_text("ab") == [98, 99] + [0] * (TOKENS - 2)
    tokens = [token for token in tokens_from_text("开" * 40) if token]
    assert bytes(token - 1 for token in tokens).decode() == "开" * (TOKENS // 3)
