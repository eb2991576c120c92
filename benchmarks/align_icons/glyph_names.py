"""Icons that are no concept of the phone bed, each with the name that its font gives it."""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from calibration.sources.phone_bed import icons

FONTS = ("codicon", "fa6-solid", "mdi6", "phosphor")
"""Fonts of the families that the phone bed trains on."""
_STYLES = frozenset({"alt", "bold", "box", "circle", "fill", "light", "outline", "thin", "variant"})
"""Words of glyph names that tell of the drawing, and not of what is drawn."""


def words_of(concepts: list[dict[str, str]]) -> frozenset[str]:
    """Return the words of the names and glyphs of concepts."""
    texts = [text for row in concepts for key, text in row.items() if key != "zh"]
    return frozenset(" ".join(texts).replace("-", " ").split()) - _STYLES


def other_glyphs(count: int, left_out: frozenset[str]) -> list[tuple[icons.Glyph, str]]:
    """Return glyphs drawn at random with their names, none of which has a word that is left out."""
    found: dict[str, icons.Glyph] = {}
    for font in FONTS:
        family, stem = icons.FONTS[font]
        charmap = json.loads((icons.fonts_folder() / icons.charmap_file(stem)).read_text())
        for name, code in charmap.items():
            words = [word for word in name.split("-") if word not in _STYLES]
            if words and not left_out.intersection(words):
                glyph = icons.Glyph(-1, family, font, name, int(str(code), 16))
                found.setdefault(" ".join(words), glyph)
    names = sorted(found)
    drawn = np.random.default_rng(0).permutation(len(names))[:count]
    return [(found[names[index]], names[index]) for index in drawn]


def render_others(glyphs: list[tuple[icons.Glyph, str]], fonts: dict[str, Any]) -> Any:
    """Return masks uint8 [N, side, side] and names [N] of the glyphs that their fonts draw."""
    pairs = [(icons.render_glyph(glyph, fonts), name) for glyph, name in glyphs]
    kept = [(mask, name) for mask, name in pairs if mask is not None]
    return np.stack([mask for mask, _ in kept]), [name for _, name in kept]
