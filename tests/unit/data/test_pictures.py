"""Pictures: every kind of file becomes upright 8-bit RGB, or an error that names the file."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from compressor.data import pictures
from compressor.data.pictures import (
    WHITE,
    Picture,
    check_header,
    file_problem,
    open_picture,
    parse_colour,
    picture_suffixes,
    without_pillow_warnings,
)
from compressor.errors import DataError, MissingExtraError

GRADIENT = np.arange(48 * 64, dtype=np.uint16).reshape(48, 64) * 21
"""16 bits, from 0 to 64491."""
ORIENTATION = 0x0112


def scene() -> Image.Image:
    """Return a picture whose quarters have different colours, wider than high."""
    pixels = np.zeros((16, 24, 3), dtype=np.uint8)
    pixels[:8, :12], pixels[:8, 12:] = (200, 30, 30), (30, 200, 30)
    pixels[8:, :12], pixels[8:, 12:] = (30, 30, 200), (220, 220, 220)
    return Image.fromarray(pixels)


def pixels_of(file: Path, background: str = WHITE) -> np.ndarray:
    picture = open_picture(file, background)
    assert picture.image.mode == "RGB"
    return np.asarray(picture.image).astype(int)


def write_png(file: Path, depth: int, colour_type: int, rows: list[bytes], key: bytes) -> None:
    """Write a PNG that Pillow itself cannot write, with a transparent colour."""

    def chunk(name: bytes, data: bytes) -> bytes:
        checksum = struct.pack(">I", zlib.crc32(name + data))
        return struct.pack(">I", len(data)) + name + data + checksum

    width = len(rows[0]) * 8 // (depth * (3 if colour_type == 2 else 1))
    header = struct.pack(">IIBBBBB", width, len(rows), depth, colour_type, 0, 0, 0)
    data = zlib.compress(b"".join(b"\0" + row for row in rows))
    chunks = ((b"IHDR", header), (b"tRNS", key), (b"IDAT", data), (b"IEND", b""))
    file.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in chunks))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tiff"])
def test_the_orientation_of_exif_is_applied(tmp_path: Path, orientation: int, suffix: str) -> None:
    turns = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    stored = scene().transpose(turns[orientation]) if orientation in turns else scene()
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    file = tmp_path / f"a.{suffix}"
    stored.save(file, exif=exif, quality=100)
    assert np.abs(pixels_of(file) - np.asarray(scene())).mean() < 8


@pytest.mark.parametrize("name", ["a.png", "a.tiff", "a.pgm", "a.jp2"])
def test_16_bits_are_scaled_and_not_clipped(tmp_path: Path, name: str) -> None:
    Image.fromarray(GRADIENT).save(tmp_path / name)
    expected = np.rint(GRADIENT / 257)
    assert np.abs(pixels_of(tmp_path / name) - expected[..., None]).max() <= 1


def test_a_rotated_16_bit_picture_is_turned_and_scaled(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    Image.fromarray(GRADIENT).save(tmp_path / "a.png", exif=exif)
    expected = np.rot90(np.rint(GRADIENT / 257), -1)
    assert np.array_equal(pixels_of(tmp_path / "a.png")[..., 0], expected)


def test_a_16_bit_tiff_in_which_0_is_white_is_inverted(tmp_path: Path) -> None:
    Image.fromarray(GRADIENT).save(tmp_path / "a.tiff", tiffinfo={262: 0})
    assert pixels_of(tmp_path / "a.tiff")[0, 0, 0] == 255
    assert pixels_of(tmp_path / "a.tiff")[-1, -1, 0] == 255 - round(64491 / 257)


def test_floats_from_0_to_1_are_scaled_and_others_refused(tmp_path: Path) -> None:
    values = np.linspace(0, 1, 12, dtype=np.float32).reshape(3, 4)
    Image.fromarray(values).save(tmp_path / "a.tiff")
    assert np.array_equal(pixels_of(tmp_path / "a.tiff")[..., 0], np.rint(values * 255))
    for wrong in (values * 200, values - 0.5, values + np.float32(np.nan)):
        Image.fromarray(wrong).save(tmp_path / "b.tiff")
        with pytest.raises(DataError, match=r"b\.tiff.*only 0 to 1 has a defined"):
            open_picture(tmp_path / "b.tiff")


def test_integers_beyond_16_bits_are_refused(tmp_path: Path) -> None:
    Image.fromarray(GRADIENT.astype(np.int32) * 2).save(tmp_path / "a.tiff")
    with pytest.raises(DataError, match=r"a\.tiff.*from 0 to 128982"):
        open_picture(tmp_path / "a.tiff")


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
@pytest.mark.parametrize(("background", "value"), [(WHITE, 255), ("#102030", (16, 32, 48))])
def test_the_background_shows_through_transparent_pixels(
    tmp_path: Path, mode: str, background: str, value: int | tuple[int, int, int]
) -> None:
    picture = Image.new("RGBA", (4, 4), (50, 50, 50, 255))
    picture.putpixel((0, 0), (0, 0, 0, 0))
    if mode == "P":
        palette = Image.new("P", (4, 4), 1)
        palette.putpalette([0, 0, 0, 50, 50, 50])
        palette.putpixel((0, 0), 0)
        palette.save(tmp_path / "a.png", transparency=0)
    else:
        picture.convert(mode).save(tmp_path / "a.png")
    pixels = pixels_of(tmp_path / "a.png", background)
    assert (pixels[0, 0] == value).all()
    assert (pixels[1:] == 50).all()
    assert open_picture(tmp_path / "a.png").had_transparency


def test_half_transparent_pixels_are_blended(tmp_path: Path) -> None:
    Image.new("RGBA", (2, 2), (0, 0, 0, 128)).save(tmp_path / "a.webp", lossless=True)
    assert np.abs(pixels_of(tmp_path / "a.webp") - 127).max() <= 1
    assert np.abs(pixels_of(tmp_path / "a.webp", "#000000")).max() == 0


def test_an_opaque_alpha_channel_is_not_transparency(tmp_path: Path) -> None:
    Image.new("RGBA", (2, 2), (9, 9, 9, 255)).save(tmp_path / "a.png")
    assert not open_picture(tmp_path / "a.png").had_transparency


def test_the_transparent_colour_of_a_png_has_the_depth_of_its_values(tmp_path: Path) -> None:
    wide = tmp_path / "wide.png"
    write_png(
        wide,
        16,
        2,
        [struct.pack(">6H", 1000, 2000, 3000, 65535, 0, 0)],
        struct.pack(">3H", 1000, 2000, 3000),
    )
    assert pixels_of(wide, "#010203").tolist() == [[[1, 2, 3], [255, 0, 0]]]
    narrow = tmp_path / "narrow.png"
    write_png(narrow, 4, 0, [bytes([0xF0])], struct.pack(">H", 15))
    assert pixels_of(narrow, "#010203").tolist() == [[[1, 2, 3], [0, 0, 0]]]
    grey = tmp_path / "grey.png"
    write_png(grey, 16, 0, [struct.pack(">2H", 500, 65535)], struct.pack(">H", 500))
    assert pixels_of(grey, "#010203").tolist() == [[[1, 2, 3], [255, 255, 255]]]


def test_cmyk_of_adobe_is_not_inverted(tmp_path: Path) -> None:
    scene().convert("CMYK").save(tmp_path / "a.jpg", quality=100)
    assert b"Adobe" in (tmp_path / "a.jpg").read_bytes()
    assert np.abs(pixels_of(tmp_path / "a.jpg") - np.asarray(scene())).mean() < 8


def test_the_first_frame_is_used_and_further_frames_are_reported(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    for name in ("a.gif", "a.png", "a.webp", "a.tiff"):
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:], lossless=True)
        assert open_picture(tmp_path / name).has_more_frames
        assert np.abs(pixels_of(tmp_path / name)[0, 0] - (255, 0, 0)).max() <= 1
    frames[0].save(tmp_path / "a.mpo", save_all=True, append_images=frames[1:])
    assert not open_picture(tmp_path / "a.mpo").has_more_frames


@pytest.mark.parametrize(
    "suffix", ["png", "jpg", "webp", "bmp", "gif", "tga", "ppm", "ico", "jp2", "avif", "qoi"]
)
def test_the_content_decides_the_format(tmp_path: Path, suffix: str) -> None:
    assert f".{suffix}" in picture_suffixes()
    scene().resize((16, 16)).save(tmp_path / f"a.{suffix}")
    (tmp_path / f"a.{suffix}").rename(tmp_path / "a.jpeg")
    assert pixels_of(tmp_path / "a.jpeg").shape == (16, 16, 3)
    (tmp_path / "a.jpeg").rename(tmp_path / "a")
    assert pixels_of(tmp_path / "a").shape == (16, 16, 3)


def test_files_that_pillow_does_not_decode_have_no_picture_suffix() -> None:
    assert not {".pdf", ".eps", ".ps", ".h5", ".mpg", ".wmf", ".txt"} & picture_suffixes()


def test_heic_is_read_with_its_extra(tmp_path: Path) -> None:
    pytest.importorskip("pillow_heif")
    picture_suffixes()  # registers the format
    scene().resize((64, 64)).save(tmp_path / "a.heic", quality=100)
    assert pixels_of(tmp_path / "a.heic").shape == (64, 64, 3)


def test_heic_without_its_extra_names_the_install_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.jpg").write_bytes(b"\0\0\0\x1cftypheic\0\0\0\0" + bytes(100))
    with_heic = pictures._formats()
    monkeypatch.setattr(pictures, "heic_is_installed", lambda: False)
    monkeypatch.setattr(
        pictures, "_formats", lambda: tuple(name for name in with_heic if name != "HEIF")
    )
    with pytest.raises(MissingExtraError, match=r"a\.jpg is HEIC(.|\n)*autoglm-compress\[heic\]"):
        open_picture(tmp_path / "a.jpg")


def broken_files(folder: Path) -> dict[str, str]:
    """Write one broken file of each kind; return name to a part of the message."""
    scene().save(folder / "whole.png")
    data = (folder / "whole.png").read_bytes()
    (folder / "truncated.png").write_bytes(data[:-40])
    (folder / "text.png").write_text("not a picture")
    (folder / "empty.png").write_bytes(b"")
    (folder / "folder.png").mkdir()
    (folder / "dangling.png").symlink_to(folder / "gone.png")
    (folder / "loop.png").symlink_to(folder / "loop.png")
    Image.new("1", (16000, 12000)).save(folder / "large.png")
    Image.new("1", (10000, 9000)).save(folder / "warned.png")
    return {
        "truncated.png": "cannot be decoded",
        "text.png": "no picture in a format",
        "empty.png": "is empty",
        "folder.png": "is a folder",
        "dangling.png": "which does not exist",
        "loop.png": "cannot be read",
        "large.png": "too large",
        "warned.png": "10000 × 9000 pixels exceed the limit",
        "missing.png": "does not exist",
    }


def test_every_broken_file_is_named(tmp_path: Path) -> None:
    with without_pillow_warnings():
        for name, reason in broken_files(tmp_path).items():
            with pytest.raises(DataError, match=rf"{name}.*{reason}"):
                open_picture(tmp_path / name)


def test_headers_show_all_but_truncation(tmp_path: Path) -> None:
    with without_pillow_warnings():
        for name, reason in broken_files(tmp_path).items():
            if name == "truncated.png":
                check_header(tmp_path / name)
            else:
                with pytest.raises(DataError, match=rf"{name}.*{reason}"):
                    check_header(tmp_path / name)


def test_a_device_is_not_opened() -> None:
    assert "is a device" in str(file_problem(Path("/dev/zero")))


def test_a_corrupt_orientation_is_no_traceback(tmp_path: Path) -> None:
    scene().save(tmp_path / "a.jpg", exif=b"Exif\0\0II*\0\x08\0\0\0\x05\0\x12\x01garbage")
    with without_pillow_warnings():
        try:
            assert isinstance(open_picture(tmp_path / "a.jpg"), Picture)
        except DataError as error:
            assert "a.jpg" in error.what


@pytest.mark.parametrize(
    ("text", "colour"), [("white", "#ffffff"), ("#ABC", "#aabbcc"), ("#010203", "#010203")]
)
def test_colours_are_names_or_hexadecimal(text: str, colour: str) -> None:
    assert parse_colour(text) == colour


@pytest.mark.parametrize("text", ["", "whit", "#12345", "#01020304", "transparent", "12"])
def test_other_colours_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="no colour"):
        parse_colour(text)
