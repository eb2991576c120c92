"""Icon glyphs from the fonts that ship with qtawesome, read as files: no Qt, no import of qtawesome.

A family is one designer's drawing: Font Awesome 5 and 6 are one, and so are Phosphor's weights. Families are held out, not
fonts.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

import numpy as np

from compressor.errors import MissingExtraError

CELL: Final = 32
"""Side of a cell in pixels."""
MASK: Final = 28
"""Side of a glyph's mask: its longer side fills it."""

FONTS: Final = {
    "codicon": ("codicon", "codicon-0.0.36"),
    "elusive": ("elusive", "elusiveicons-webfont-2.0"),
    "fa5-solid": ("fa", "fontawesome5-solid-webfont-5.15.4"),
    "fa5-regular": ("fa", "fontawesome5-regular-webfont-5.15.4"),
    "fa6-solid": ("fa", "fontawesome6-solid-webfont-6.7.2"),
    "fa6-regular": ("fa", "fontawesome6-regular-webfont-6.7.2"),
    "mdi5": ("mdi", "materialdesignicons5-webfont-5.9.55"),
    "mdi6": ("mdi", "materialdesignicons6-webfont-6.9.96"),
    "phosphor": ("phosphor", "phosphor-1.3.0"),
    "remix": ("remix", "remixicon-2.5.0"),
}
"""Font to its family and the stem of its file."""
_SUFFIXES: Final = {
    "mdi": ("", "-outline"),
    "phosphor": ("", "-thin", "-light", "-bold", "-fill"),
    "remix": ("-line", "-fill", ""),
}
FAMILIES: Final = {
    "train": ("fa", "mdi", "phosphor", "codicon"),
    "validation": ("elusive",),
    "test": ("remix",),
}
"""Which families draw the icons of a split; none is in two."""


@dataclass(frozen=True, slots=True)
class Glyph:
    """One drawing of one concept."""

    concept: int
    family: str
    font: str
    name: str
    codepoint: int


def fonts_folder() -> Path:
    """Where qtawesome keeps its fonts.

    Raises:
        MissingExtraError: it is not installed.
    """
    found = find_spec("qtawesome")
    if found is None or not found.submodule_search_locations:
        raise MissingExtraError("qtawesome", "the data source phone-bed", "phone-bed")
    return Path(next(iter(found.submodule_search_locations))) / "fonts"


def charmap_file(stem: str) -> str:
    """The charmap that belongs to a font file: the version stands after `-charmap`."""
    head, _, version = stem.rpartition("-")
    return f"{head}-charmap-{version}.json"


@cache
def concepts() -> dict[str, dict[str, str]]:
    """Concept to its words (`en`, `zh`) and its glyphs' names by family."""
    table: dict[str, dict[str, str]] = json.loads(
        Path(__file__).with_name("concepts.json").read_text(encoding="utf-8")
    )
    return table


def glyphs() -> Iterator[Glyph]:
    """Every drawing of every concept, in the order of the table."""
    folder = fonts_folder()
    charmaps = {
        font: json.loads((folder / charmap_file(stem)).read_text(encoding="utf-8"))
        for font, (_, stem) in FONTS.items()
    }
    for index, row in enumerate(concepts().values()):
        for font, (family, _) in FONTS.items():
            for name in row.get(family, "").split():
                for suffix in _SUFFIXES.get(family, ("",)):
                    if (code := charmaps[font].get(name + suffix)) is not None:
                        yield Glyph(index, family, font, name + suffix, int(str(code), 16))


def rendered(glyph: Glyph, fonts: dict[str, Any]) -> np.ndarray[Any, np.dtype[np.uint8]] | None:
    """The glyph's alpha mask [MASK, MASK], centred, its longer side filling it; None where the font draws nothing."""
    from PIL import Image, ImageDraw

    font = fonts[glyph.font]
    character = chr(glyph.codepoint)
    left, top, right, bottom = font.getbbox(character)
    if right <= left or bottom <= top:
        return None
    image = Image.new("L", (right - left, bottom - top), 0)
    ImageDraw.Draw(image).text((-left, -top), character, font=font, fill=255)
    box = image.getbbox()
    if box is None:
        return None
    image = image.crop(box)
    scale = MASK / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    small = image.resize(size, Image.Resampling.LANCZOS)
    canvas = Image.new("L", (MASK, MASK), 0)
    canvas.paste(small, ((MASK - size[0]) // 2, (MASK - size[1]) // 2))
    return np.asarray(canvas).copy()


def open_fonts() -> dict[str, Any]:
    """Every font at a size well above the mask's.

    Raises:
        MissingExtraError: Pillow is not installed.
    """
    try:
        from PIL import ImageFont
    except ImportError as error:
        raise MissingExtraError("pillow", "the data source phone-bed", "phone-bed") from error
    folder = fonts_folder()
    return {
        font: ImageFont.truetype(str(folder / f"{stem}.ttf"), 4 * MASK)
        for font, (_, stem) in FONTS.items()
    }
