"""Data source images: one folder per class, its digest, and its problems."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from calibration.sources.images import Images, ImagesConfig
from compressor.data.contract import SourceContext
from compressor.errors import DataError


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    for name, colour in (("red", (255, 0, 0)), ("blue", (0, 0, 255))):
        folder = tmp_path / "p" / name
        folder.mkdir(parents=True)
        for number in range(3):
            Image.new("RGB", (20 + number, 30), colour).save(folder / f"{number}.png")
    return tmp_path


def config_of(path: str = "p", **fields: int) -> ImagesConfig:
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
