"""Data source phone-bed: disjoint splits, correct labels, and reproducible samples."""

from __future__ import annotations

import hashlib
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest

from calibration.sources.phone_bed import icons
from calibration.sources.phone_bed.build import build_bed
from calibration.sources.phone_bed.commands import TEMPLATES, TOKENS, VARIANTS, tokens_from_text
from calibration.sources.phone_bed.dataset import ABSENT, PhoneBedDataset, uniform
from calibration.sources.phone_bed.espeak import FRAMES, MELS, log_mel, mel_filters, resample
from calibration.sources.phone_bed.source import PhoneBed, PhoneBedConfig
from compressor.data.contract import SourceContext

FEW = {"train": 2, "validation": 1, "test": 1}
"""Utterances per concept and language."""


@pytest.fixture(scope="session")
def bed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The arrays with few spoken commands, built once for all tests."""
    return build_bed(tmp_path_factory.mktemp("bed") / "bed", lambda *_: None, FEW)


def dataset(
    bed: Path, split: str, *, augment: bool = False, seed: int = 0, commands_per_screen: int = 1
) -> PhoneBedDataset:
    return PhoneBedDataset(
        bed, split, 600, seed, augment=augment, commands_per_screen=commands_per_screen
    )


def indices(count: int) -> np.ndarray:
    return np.arange(count, dtype=np.int64)


def test_no_family_speaker_or_template_is_in_two_splits() -> None:
    for table in (icons.FAMILIES, VARIANTS, *TEMPLATES.values()):
        entries = [entry for split in table.values() for entry in split]
        assert len(entries) == len(set(entries))
    families = {(glyph.font, glyph.codepoint): glyph.family for glyph in icons.iterate_glyphs()}
    assert set(families.values()) == {
        family for split in icons.FAMILIES.values() for family in split
    }


def test_training_draws_every_concept_and_most_have_four_families() -> None:
    table = icons.concepts()
    families_of: dict[int, set[str]] = {}
    for glyph in icons.iterate_glyphs():
        families_of.setdefault(glyph.concept, set()).add(glyph.family)
    assert len(table) >= 48
    assert sum(len(families) >= 4 for families in families_of.values()) >= 48
    assert all(families & set(icons.FAMILIES["train"]) for families in families_of.values())
    words = [row[language] for row in table.values() for language in ("en", "zh")]
    assert len(words) == len(set(words))


def test_names_in_the_table_exist_in_the_fonts() -> None:
    named = {
        (concept, family)
        for concept, row in enumerate(icons.concepts().values())
        for family in row
        if family not in {"en", "zh"}
    }
    assert named == {(glyph.concept, glyph.family) for glyph in icons.iterate_glyphs()}


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_labels_are_the_cells_of_the_concepts(bed: Path, split: str) -> None:
    batch = dataset(bed, split, augment=split == "train").batch(indices(600))
    for cells, concept, label in zip(
        batch["cell_concepts"], batch["concept"], batch["label"], strict=True
    ):
        assert len(set(cells.tolist())) == 9
        assert (concept not in cells) if label == ABSENT else cells[label] == concept
    assert 0.05 < (batch["label"] == ABSENT).mean() < 0.16
    assert batch["screen"].shape == (600, 3, 96, 96)
    assert batch["screen"].dtype == np.uint8
    assert batch["mel"].shape == (600, MELS, FRAMES)


def test_facts_are_those_of_the_samples(bed: Path) -> None:
    config = PhoneBedConfig(source="phone-bed", split="test", num_samples=600)
    facts = PhoneBed().facts(config, SourceContext(Path()))
    samples = dataset(bed, "test")
    batch = samples.batch(indices(2))
    assert tuple(input_.name for input_ in facts.inputs or ()) == samples.input_names
    for input_ in facts.inputs or ():
        array = batch[input_.name]
        assert (input_.dtype, input_.shape) == (array.dtype.name, array.shape[1:])
    assert facts.num_samples == len(samples)
    assert facts.class_names == samples.class_names()
    assert facts.num_classes == ABSENT + 1


@pytest.mark.parametrize("commands_per_screen", [4, 9])
def test_commands_that_share_a_screen_have_their_own_labels(
    bed: Path, commands_per_screen: int
) -> None:
    samples = dataset(bed, "train", augment=True, commands_per_screen=commands_per_screen)
    batch = samples.batch(indices(94))
    screens = -(-94 // commands_per_screen)
    assert batch["screen"].shape[0] == batch["cell_concepts"].shape[0] == screens
    attributes = samples.attributes(indices(94))
    for row, (concept, label) in enumerate(zip(batch["concept"], batch["label"], strict=True)):
        cells = batch["cell_concepts"][row // -(-94 // screens)].tolist()
        assert len(set(cells)) == 9
        assert (concept not in cells) if label == ABSENT else cells[label] == concept
        assert label != ABSENT or attributes["absent"][row]
    cells = batch["label"][batch["label"] != ABSENT]
    assert np.bincount(cells, minlength=9).min() > 0


def test_a_command_is_written_or_spoken_as_its_slices_state(bed: Path) -> None:
    samples = dataset(bed, "test")
    batch, slices = samples.batch(indices(600)), samples.slices()
    written, spoken = batch["tokens"].any(axis=1), batch["mel"].any(axis=(1, 2))
    assert (written ^ spoken).all()
    assert (np.where(spoken, "speech", "text") == slices["input"]).all()
    for row in np.flatnonzero(written)[:50]:
        tokens, language = batch["tokens"][row], slices["language"][row]
        text = bytes((tokens[tokens > 0] - 1).tolist()).decode()
        assert (language == "en") == text.isascii() or "QR" in text or "wifi" in text
        words = list(icons.concepts().values())[batch["concept"][row]][language]
        assert words in text


def test_slices_combine_kind_and_language_and_strata_differ_from_them(bed: Path) -> None:
    samples = dataset(bed, "test")
    slices = samples.slices()
    assert set(slices) == {"input", "language", "input×language"}
    expected = [
        f"{kind}×{language}"
        for kind, language in zip(slices["input"], slices["language"], strict=True)
    ]
    assert slices["input×language"].tolist() == expected
    assert set(expected) == {"text×zh", "text×en", "speech×zh", "speech×en"}
    assert set(samples.strata()) == {"command", "concept"}
    assert set(samples.strata()["command"]) == {"text/zh", "text/en", "speech/zh", "speech/en"}


def test_samples_are_a_pure_function_of_index_and_epoch(bed: Path) -> None:
    train, test = dataset(bed, "train", augment=True), dataset(bed, "test")
    rows = np.array([5, 3, 500], dtype=np.int64)
    for samples in (train, test):
        reopened = type(samples)(bed, samples.split, 600, 0, augment=samples.augment)
        first, second = samples.batch(rows, 4), reopened.batch(rows, 4)
        assert all((first[name] == second[name]).all() for name in first)
    assert (train.batch(rows, 1)["screen"] != train.batch(rows, 2)["screen"]).any()
    assert (train.batch(rows, 1)["concept"] == train.batch(rows, 2)["concept"]).all()
    assert (test.batch(rows, 1)["screen"] == test.batch(rows, 2)["screen"]).all()
    other_seed = dataset(bed, "test", seed=1).batch(rows)
    assert (other_seed["screen"] != test.batch(rows)["screen"]).any()


def test_icons_contrast_with_their_background(bed: Path) -> None:
    screen = dataset(bed, "test").batch(indices(50))["screen"].astype(int)
    cells = screen.reshape(50, 3, 3, 32, 3, 32).transpose(0, 2, 4, 1, 3, 5).reshape(450, 3, -1)
    assert ((cells.max(axis=2) - cells.min(axis=2)).max(axis=1) > 50).all()


def test_two_builds_give_the_same_bytes_and_damage_is_repaired(bed: Path, tmp_path: Path) -> None:
    second = build_bed(tmp_path / "bed", lambda *_: None, FEW)
    names = sorted(path.name for path in bed.iterdir())
    assert all((bed / name).read_bytes() == (second / name).read_bytes() for name in names)
    damaged = second / "mel-test.npy"
    content = bytearray(damaged.read_bytes())
    content[-1] ^= 1
    damaged.write_bytes(content)
    build_bed(tmp_path / "bed", lambda *_: None, FEW)
    assert damaged.read_bytes() == (bed / "mel-test.npy").read_bytes()


# Recorded with the first version of the source.
PACKAGES = {"qtawesome": "1.4.2", "espeakng-loader": "0.2.4", "pillow": "13.0.0"}
SHA256_OF_INTEGERS = "7151eac32e971d3a9431b19a67e18798b51d53587f20a898406c7d161aab97a6"
MEANS = {"screen": 125.8020, "mel": 0.152786}


def test_a_change_of_samples_is_noticed(bed: Path) -> None:
    """The digests do not cover the code: if this fails, increase ``VERSION`` of the source."""
    if {package: version(package) for package in PACKAGES} != PACKAGES:
        pytest.skip("the expected values were recorded with other versions of the packages")
    batch = dataset(bed, "train", augment=True, commands_per_screen=4).batch(indices(400), 2)
    exact = hashlib.sha256()
    for name in ("tokens", "label", "concept", "cell_concepts"):
        exact.update(np.ascontiguousarray(batch[name].astype(np.int64)).tobytes())
    assert exact.hexdigest() == SHA256_OF_INTEGERS
    # Rendering and transforms may round differently on other machines.
    means = {name: float(batch[name].mean(dtype=np.float64)) for name in MEANS}
    assert means == pytest.approx(MEANS, rel=1e-3)


@pytest.mark.parametrize("augment", [None, True])
def test_the_digest_of_published_samples_stays(augment: bool | None) -> None:
    versions = {package: version(package) for package in (*PACKAGES, "numpy")}
    if versions != PACKAGES | {"numpy": "2.4.6"}:
        pytest.skip("the expected values were recorded with other versions of the packages")
    config = PhoneBedConfig(source="phone-bed", split="train", augment=augment)
    digest = PhoneBed().digest(config, SourceContext(Path()))
    assert digest == "8f88f8dc01b404c67322fa7b3fd03492ce585d1388673171696b715cb89fc455"


def test_random_numbers_are_uniform_and_independent_of_the_batch() -> None:
    draw = uniform(3, indices(2000), 7, 8)
    assert (uniform(3, np.array([17], dtype=np.int64), 7, 8) == draw[17]).all()
    assert np.abs(draw.mean(axis=0) - 0.5).max() < 0.03
    assert np.abs(np.corrcoef(draw.T) - np.eye(8)).max() < 0.1


def test_a_tone_is_in_the_mel_band_of_its_frequency() -> None:
    time = np.arange(22_050) / 22_050
    mel = log_mel(resample(np.sin(2 * np.pi * 1000 * time).astype(np.float32), 22_050))
    assert mel.shape == (MELS, 98)
    centre = mel_filters().argmax(axis=1)[mel[:, 50].argmax()] * 16_000 / 512
    assert abs(centre - 1000) < 60
    assert mel.min() >= 1


def test_tokens_are_truncated_at_a_whole_character() -> None:
    assert tokens_from_text("ab") == [98, 99] + [0] * (TOKENS - 2)
    tokens = [token for token in tokens_from_text("开" * 40) if token]
    assert bytes(token - 1 for token in tokens).decode() == "开" * (TOKENS // 3)
