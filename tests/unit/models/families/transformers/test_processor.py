"""Processor of a checkpoint: its images are opened as all pictures are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from compressor.errors import DataError
from compressor.models.families.transformers.processor import Processor
from tests.support.processors import message, write_picture, write_processor


@pytest.fixture
def processor(tmp_path: Path) -> Processor:
    write_processor(tmp_path)
    return Processor(tmp_path)


def pixels(processor: Processor, file: Path, **options: str) -> np.ndarray:
    return processor.encode([message("user", "w5", str(file))], **options).arrays["pixel_values"]


def test_the_orientation_of_exif_is_applied(processor: Processor, tmp_path: Path) -> None:
    write_picture(tmp_path / "upright.png", 28, 84)
    exif = Image.Exif()
    exif[0x0112] = 6
    with Image.open(tmp_path / "upright.png") as upright:
        upright.rotate(90, expand=True).save(tmp_path / "turned.png", exif=exif)
    expected = pixels(processor, tmp_path / "upright.png")
    assert np.array_equal(pixels(processor, tmp_path / "turned.png"), expected)


def test_transparent_pixels_show_the_background(processor: Processor, tmp_path: Path) -> None:
    Image.new("RGBA", (28, 28), (0, 0, 0, 0)).save(tmp_path / "a.png")
    for colour, options in (("white", {}), ("#204060", {"background": "#204060"})):
        Image.new("RGB", (28, 28), colour).save(tmp_path / "b.png")
        expected = pixels(processor, tmp_path / "b.png")
        assert np.array_equal(pixels(processor, tmp_path / "a.png", **options), expected)


def test_16_bits_are_not_clipped(processor: Processor, tmp_path: Path) -> None:
    wide = np.arange(28 * 28, dtype=np.uint16).reshape(28, 28) * 80
    Image.fromarray(wide).save(tmp_path / "a.png")
    Image.fromarray(np.rint(wide / 257).astype(np.uint8)).save(tmp_path / "b.png")
    assert np.array_equal(
        pixels(processor, tmp_path / "a.png"), pixels(processor, tmp_path / "b.png")
    )


def test_a_broken_image_is_named(processor: Processor, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_text("not a picture")
    with pytest.raises(DataError, match=r"a\.png is no picture"):
        pixels(processor, tmp_path / "a.png")
    with pytest.raises(DataError, match=r"gone\.png does not exist"):
        pixels(processor, tmp_path / "gone.png")


def test_messages_are_not_changed(processor: Processor, tmp_path: Path) -> None:
    write_picture(tmp_path / "a.png", 28, 28)
    messages = [message("user", "w5", str(tmp_path / "a.png")), {"role": "user", "content": "w6"}]
    before = [dict(entry, content=list(entry["content"])) for entry in messages[:1]]
    processor.encode(messages)
    assert messages[:1] == before
