"""Icon glyphs from the fonts that ship with qtawesome.

The fonts are read as files, without importing qtawesome or Qt. A family is the work of one
designer: Font Awesome 5 and 6 are one family, and so are Phosphor's weights. Splits differ in
families, not only in fonts.
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
"""Height and width of a cell in pixels."""
MASK: Final = 28
"""Height and width of a glyph's mask in pixels; the longer side of the glyph fills it."""

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
"""Font to its family and the stem of its file name."""
CONCEPTS_FILE: Final = Path(__file__).with_name("concepts.json")
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
"""Families of the icons of each split; no family is in two splits."""


@dataclass(frozen=True, slots=True)
class Glyph:
    """One drawing of one concept."""

    concept: int
    family: str
    font: str
    name: str
    codepoint: int


def fonts_folder() -> Path:
    """Return the folder of qtawesome's fonts.

    Raises:
        MissingExtraError: qtawesome is not installed.
    """
    spec = find_spec("qtawesome")
    if spec is None or not spec.submodule_search_locations:
        raise MissingExtraError("qtawesome", "the data source phone-bed", "phone-bed")
    return Path(next(iter(spec.submodule_search_locations))) / "fonts"


def charmap_file(stem: str) -> str:
    """Return the name of the charmap of a font: ``<font>-charmap-<version>.json``."""
    head, _, version = stem.rpartition("-")
    return f"{head}-charmap-{version}.json"


@cache
def concepts() -> dict[str, dict[str, str]]:
    """Return each concept's words by language (`en`, `zh`) and glyph names by family."""
    table: dict[str, dict[str, str]] = json.loads(CONCEPTS_FILE.read_text(encoding="utf-8"))
    return table


def iterate_glyphs() -> Iterator[Glyph]:
    """Yield every drawing of every concept, in the order of the table."""
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


def render_glyph(glyph: Glyph, fonts: dict[str, Any]) -> np.ndarray[Any, np.dtype[np.uint8]] | None:
    """Return the glyph's alpha mask [MASK, MASK], centred; None if the font draws nothing."""
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
    """Open every font at four times the size of a mask.

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
