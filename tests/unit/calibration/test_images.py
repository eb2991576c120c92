"""Data source images: one folder per class, its digest, and its problems."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from calibration.sources import picture_checks
from calibration.sources.images import Images, ImagesConfig
from compressor.data.contract import InputFacts, SourceContext
from compressor.errors import DataError


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    for name, colour in (("red", (255, 0, 0)), ("blue", (0, 0, 255))):
        folder = tmp_path / "p" / name
        folder.mkdir(parents=True)
        for number in range(3):
            Image.new("RGB", (20 + number, 30), colour).save(folder / f"{number}.png")
    return tmp_path


def config_of(path: str = "p", **fields: Any) -> ImagesConfig:
    return ImagesConfig(source="images", path=path, **fields)


def test_each_folder_is_a_class(pictures: Path) -> None:
    context, config = SourceContext(pictures), config_of(image_size=8)
    assert Images().problems(config, context) == []
    samples = Images().load(config, context)
    assert samples.class_names() == ("blue", "red")
    batch = samples.batch(np.arange(6))
    assert batch["image"].shape == (6, 3, 8, 8)
    assert (batch["image"][batch["label"] == 1][:, 0] == 255).all()
    assert len(Images().load(config_of(image_size=8, num_samples=2, seed=1), context)) == 2


def test_folder_names_can_be_the_numbers_of_the_classes(pictures: Path) -> None:
    context, config = SourceContext(pictures), config_of(image_size=8, numbered=True)
    assert "not numbers of classes: blue, red" in Images().problems(config, context)[0]
    (pictures / "p" / "blue").rename(pictures / "p" / "970")
    (pictures / "p" / "red").rename(pictures / "p" / "22")
    assert Images().problems(config, context) == []
    samples = Images().load(config, context)
    batch = samples.batch(np.arange(6))
    assert sorted(set(batch["label"].tolist())) == [22, 970]
    assert (batch["image"][batch["label"] == 22][:, 0] == 255).all()
    assert samples.class_names() is None


def test_the_digest_covers_the_content_of_pictures_but_not_their_path(pictures: Path) -> None:
    context = SourceContext(pictures)
    before = Images().digest(config_of(), context)
    (pictures / "p").rename(pictures / "q")
    assert Images().digest(config_of("q"), context) == before
    with (pictures / "q" / "red" / "0.png").open("ab") as file:
        file.write(b"x")
    assert Images().digest(config_of("q"), context) != before


def test_all_unreadable_pictures_are_named(pictures: Path) -> None:
    context = SourceContext(pictures)
    (pictures / "p" / "empty").mkdir()
    (pictures / "p" / "red" / "0.png").write_bytes(b"")
    problems = "\n".join(Images().problems(config_of(), context))
    assert "p/empty holds no picture" in problems
    assert "0.png is empty" in problems
    (pictures / "p" / "red" / "0.png").write_bytes(b"not a picture")
    (pictures / "p" / "blue" / "1.png").write_bytes(b"not a picture")
    with pytest.raises(DataError, match=r"2 pictures(.|\n)*1\.png(.|\n)*0\.png"):
        Images().load(config_of(), context)
    assert "not a directory" in Images().problems(config_of("nowhere"), context)[0]


def test_a_seed_without_a_draw_is_refused(pictures: Path) -> None:
    context = SourceContext(pictures)
    assert "`seed` has no effect" in Images().problems(config_of(seed=1), context)[0]
    assert Images().problems(config_of(seed=1, num_samples=2), context) == []


def notes_of(pictures: Path, config: ImagesConfig) -> list[str]:
    """Return the notes of all methods that a run calls."""
    notes: list[str] = []
    context = SourceContext(pictures, note=notes.append)
    assert Images().problems(config, context) == []
    Images().digest(config, context)
    Images().load(config, context)
    return list(dict.fromkeys(notes))


def test_nothing_hidden_is_a_class_or_a_sample(pictures: Path) -> None:
    root = pictures / "p"
    before = Images().digest(config_of(), SourceContext(pictures))
    for folder in (".git", "__MACOSX", "@eaDir", "red/.thumbnails", "red/__MACOSX", "red/@eaDir"):
        (root / folder).mkdir()
        Image.new("RGB", (4, 4)).save(root / folder / "x.png")
    for name in ("._0.png", ".hidden.png", "Thumbs.db", ".DS_Store", "desktop.ini"):
        (root / "red" / name).write_bytes(b"x")
        (root / name).write_bytes(b"x")
    config = config_of(image_size=8)
    notes = notes_of(pictures, config)
    assert len(notes) == 1
    assert "p: hidden, skipped (16): .DS_Store, " in notes[0]
    samples = Images().load(config, SourceContext(pictures))
    assert samples.class_names() == ("blue", "red")
    assert len(samples) == 6
    assert Images().digest(config_of(), SourceContext(pictures)) == before


def test_files_of_other_kinds_are_skipped_counted_and_named(pictures: Path) -> None:
    (pictures / "p" / "labels.csv").write_text("x")
    (pictures / "p" / "red" / "notes.txt").write_text("x")
    (pictures / "p" / "red" / "no_suffix").write_text("x")
    notes = notes_of(pictures, config_of(image_size=8))
    assert len(notes) == 1
    assert "skipped (3)" in notes[0]
    assert "labels.csv, red/no_suffix, red/notes.txt" in notes[0]


def test_every_format_of_pillow_is_a_sample(pictures: Path) -> None:
    for suffix in ("tif", "tiff", "jp2", "avif", "ico", "ppm", "TGA", "jfif", "JPG", "mpo"):
        Image.new("RGB", (16, 16), (255, 0, 0)).save(pictures / "p" / "red" / f"x.{suffix}")
    samples = Images().load(config_of(image_size=8), SourceContext(pictures))
    assert len(samples) == 16
    reds = samples.batch(np.arange(3, 16))["image"]
    assert (reds[:, 0] > 250).all()
    assert (reds[:, 1:] < 5).all()


def test_folders_within_a_class_and_links_belong_to_it(pictures: Path) -> None:
    deep = pictures / "p" / "red" / "a" / "b"
    deep.mkdir(parents=True)
    Image.new("RGB", (4, 4)).save(deep / "x.png")
    (pictures / "p" / "red" / "again").symlink_to(pictures / "p" / "blue")
    facts = Images().facts(config_of(), SourceContext(pictures))
    assert facts.num_samples == 10


def test_facts_are_those_of_the_samples(pictures: Path) -> None:
    config = config_of(image_size=8, num_samples=4)
    facts = Images().facts(config, SourceContext(pictures))
    samples = Images().load(config, SourceContext(pictures))
    (image,) = facts.inputs or ()
    batch = samples.batch(np.arange(4))
    assert (image.name, image.dtype, image.shape) == ("image", "uint8", batch["image"].shape[1:])
    assert facts.num_samples == len(samples)
    assert facts.class_names == samples.class_names()
    assert facts.num_classes == 2
    (pictures / "p" / "blue").rename(pictures / "p" / "970")
    (pictures / "p" / "red").rename(pictures / "p" / "22")
    numbered = Images().facts(config_of(numbered=True), SourceContext(pictures))
    assert (numbered.num_classes, numbered.class_names) == (971, None)


def test_transparency_shows_the_background_and_is_noted(pictures: Path) -> None:
    Image.new("RGBA", (8, 8), (0, 0, 0, 0)).save(pictures / "p" / "blue" / "0.png")
    config = config_of(image_size=8, background="#00ff00")
    notes = notes_of(pictures, config)
    assert notes == [
        "p: transparent pixels show the background #00ff00 (1 of 6 pictures): blue/0.png"
    ]
    image = Images().load(config, SourceContext(pictures)).batch(np.arange(1))["image"]
    assert image[0, :, 0, 0].tolist() == [0, 255, 0]
    context = SourceContext(pictures)
    assert Images().digest(config, context) != Images().digest(config_of(image_size=8), context)
    assert config_of(background="white") == config_of(background="#FFFFFF")
    with pytest.raises(ValueError, match="no colour"):
        config_of(background="whit")


def test_animations_and_pictures_of_two_classes_are_noted(pictures: Path) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    frames[0].save(pictures / "p" / "blue" / "x.gif", save_all=True, append_images=frames[1:])
    (pictures / "p" / "red" / "y.png").write_bytes((pictures / "p" / "blue" / "0.png").read_bytes())
    shared, animated = notes_of(pictures, config_of(image_size=8))
    assert "several frames or pages, of which the first is used (1 of 8 pictures)" in animated
    assert shared.endswith("equal files in several classes (1): blue/0.png, red/y.png")


def test_pictures_outside_the_classes_are_refused(pictures: Path) -> None:
    Image.new("RGB", (4, 4)).save(pictures / "p" / "x.png")
    (problem,) = Images().problems(config_of(), SourceContext(pictures))
    assert "pictures outside the folders of the classes (1): x.png" in problem
    (only,) = Images().problems(config_of("p/red"), SourceContext(pictures))
    assert "p/red holds no folder, but pictures (3)" in only


def test_two_folders_of_one_number_are_refused(pictures: Path) -> None:
    (pictures / "p" / "red").rename(pictures / "p" / "01")
    (pictures / "p" / "blue").rename(pictures / "p" / "1")
    (problem,) = Images().problems(config_of(numbered=True), SourceContext(pictures))
    assert "the folders 01, 1 are all class 1" in problem


def test_every_broken_file_of_the_tree_is_a_problem(pictures: Path) -> None:
    red = pictures / "p" / "red"
    (red / "folder.png").mkdir()
    (red / "gone.png").symlink_to(red / "nowhere.png")
    (red / "loop.png").symlink_to(red / "loop.png")
    (red / "up").symlink_to(pictures / "p")
    (red / "empty.png").write_bytes(b"")
    (red / "0.png").write_bytes(b"not a picture")
    os.mkfifo(red / "fifo.png")
    (Path(os.fsdecode(bytes(red) + b"/\xff.png"))).write_bytes(b"x")
    problems = Images().problems(config_of(), SourceContext(pictures))
    parts = (
        "name is not UTF-8",
        "empty.png is empty",
        "fifo.png is a named pipe",
        "folder.png is a directory",
        "gone.png is a link to",
        "loop.png cannot be read",
        "up is a link to a folder that holds it",
        "0.png is no picture",
    )
    for problem, part in zip(problems, parts, strict=True):
        assert part in problem
        problem.encode()
    with pytest.raises(DataError, match=r"gone\.png"):
        Images().load(config_of(), SourceContext(pictures))


def test_heic_without_its_extra_is_a_problem_of_the_plan(
    pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (pictures / "p" / "red" / "a.HEIC").write_bytes(b"x")
    monkeypatch.setattr(picture_checks, "heic_is_installed", lambda: False)
    (problem,) = Images().problems(config_of(), SourceContext(pictures))
    assert "HEIC (1 of 7 pictures: red/a.HEIC) needs" in problem
    assert "pip install 'autoglm-compress[heic]'" in problem


def test_links_to_missing_folders_are_problems(pictures: Path) -> None:
    (pictures / "p" / "green").symlink_to("/mnt/elsewhere/green")
    (pictures / "p" / "red" / "more").symlink_to("more")
    assert sorted(Images().problems(config_of(), SourceContext(pictures))) == [
        f"{pictures}/p/green is a link to /mnt/elsewhere/green, which does not exist",
        f"{pictures}/p/red/more cannot be read: Too many levels of symbolic links",
    ]


def test_the_parts_of_a_data_set_are_no_classes(pictures: Path) -> None:
    for part in ("train", "val"):
        shutil.copytree(pictures / "p", pictures / "all" / part)
    (problem,) = Images().problems(config_of("all/"), SourceContext(pictures))
    assert "parts of a data set, not classes (train, val)" in problem
    assert "`path: all/train`" in problem
    assert Images().problems(config_of("all/train"), SourceContext(pictures)) == []


def test_folders_of_one_visible_name_are_refused(pictures: Path) -> None:
    for name in ("caf\u00e9", "cafe\u0301", "red "):
        shutil.copytree(pictures / "p" / "red", pictures / "p" / name)
    problems = Images().problems(config_of(), SourceContext(pictures))
    assert problems == [
        r"p: the folders 'cafe\u0301' and 'caf\xe9' differ only in blanks or Unicode form; merge "
        "them",
        "p: the folders 'red' and 'red ' differ only in blanks or Unicode form; merge them",
    ]


def test_folders_that_may_not_be_the_intended_classes_are_noted(pictures: Path) -> None:
    notes: list[str] = []
    context = SourceContext(pictures, note=notes.append)
    assert Images().problems(config_of("."), context) == []
    assert notes.pop().endswith("if those are the classes, name 'p' in `path`")
    (pictures / "p" / "blue").rename(pictures / "p" / "9")
    (pictures / "p" / "red").rename(pictures / "p" / "10")
    assert Images().problems(config_of(), context) == []
    assert "folder 10 has label 0; set `numbered: true`" in notes.pop()
    assert Images().problems(config_of(numbered=True), context) == []
    assert notes == []


def test_pictures_are_normalized_as_the_model_expects(pictures: Path) -> None:
    context = SourceContext(pictures)
    config = config_of(
        image_size=8, input="pixels", mean=(0.5, 0.25, 0.0), std=(0.5, 0.25, 2.0), num_samples=6
    )
    assert Images().facts(config, context).inputs == (InputFacts("pixels", "float32", (3, 8, 8)),)
    samples = Images().load(config, context)
    batch = samples.batch(np.arange(6))
    red = batch["pixels"][batch["label"] == 1]
    assert red.dtype == np.float32
    assert np.allclose(red[:, 0], 1.0)  # (1 - 0.5) / 0.5
    assert np.allclose(red[:, 1], -1.0)  # (0 - 0.25) / 0.25
    assert np.allclose(batch["pixels"][batch["label"] == 0][:, 2], 0.5)
    assert Images().digest(config, context) != Images().digest(config_of(image_size=8), context)


def test_mean_and_std_go_together() -> None:
    for fields in ({"mean": (0.5, 0.5, 0.5)}, {"mean": (0.0,) * 3, "std": (1.0, 0.0, 1.0)}):
        with pytest.raises(ValueError, match="std"):
            config_of(**fields)
