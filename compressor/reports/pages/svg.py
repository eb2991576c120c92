"""Matplotlib figures as inline SVG that follows the page: its colours, its font, its width.

Figures are drawn in stand-in colours, which become CSS variables in the output; so one picture serves light and dark mode.
Text stays text. The same figure gives the same bytes.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

INK, MUTED, LINE, ACCENT, PAPER = "#010203", "#010204", "#010205", "#010206", "#010207"
_VARIABLES = {
    INK: "var(--ink)",
    MUTED: "var(--muted)",
    LINE: "var(--line)",
    ACCENT: "var(--accent)",
    PAPER: "var(--paper)",
}
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "text.color": INK,
    "axes.labelcolor": MUTED,
    "axes.labelsize": 9,
    "axes.titlesize": 9.5,
    "axes.titlecolor": INK,
    "axes.titlelocation": "left",
    "axes.edgecolor": LINE,
    "axes.linewidth": 0.8,
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": LINE,
    "grid.linewidth": 0.6,
    "xtick.color": LINE,
    "ytick.color": LINE,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "xtick.minor.size": 0,
    "figure.facecolor": "none",
    "lines.solid_capstyle": "round",
}


@contextmanager
def drawing() -> Iterator[None]:
    """The page's style, for as long as a figure is made and saved."""
    from matplotlib import rc_context, rcdefaults

    with rc_context(), warnings.catch_warnings():
        # The layout is computed with DejaVu, which has no Chinese; the reader's browser draws the text with what it has.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        rcdefaults()
        with rc_context(_STYLE):
            yield


def svg(figure: Any, name: str, description: str) -> str:
    """The figure as an ``<svg>`` element; ``name`` (unique on the page) keeps its ids apart from other figures'."""
    from matplotlib import rc_context

    buffer = io.StringIO()
    with rc_context({"svg.hashsalt": name}):
        figure.savefig(
            buffer,
            format="svg",
            metadata={"Date": None, "Creator": None, "Format": None, "Type": None},
        )
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text, flags=re.DOTALL)
    text = re.sub(r'\b(id="|href="#|url\(#)', rf"\1{name}-", text)
    text = re.sub(r'(style|fill|stroke)="[^"]*"', _in_page_colours, text)
    text = re.sub(
        r'<svg [^>]*?viewBox="([^"]*)"[^>]*>',
        rf'<svg viewBox="\1" role="img" aria-label="{_quoted(description)}">',
        text,
        count=1,
    )
    return text.replace("xlink:href", "href").strip()


def _in_page_colours(style: re.Match[str]) -> str:
    text = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px", style.group())
    text = re.sub(r"font-family: [^;\"]*;?", "", text)
    for stand_in, variable in _VARIABLES.items():
        text = text.replace(stand_in, variable)
    return text


def _quoted(text: str) -> str:
    from xml.sax.saxutils import escape

    return escape(text, {'"': "&quot;"})
