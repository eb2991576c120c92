"""Save Matplotlib figures as inline SVG that takes its colors, font and width from the page.

MeasuredModel are drawn in placeholder colors, which become CSS variables in the output: one picture
serves light and dark mode. Text stays text. Equal figures give equal bytes.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

INK, MUTED, LINE, ACCENT, PAPER = "#010203", "#010204", "#010205", "#010206", "#010207"
_CSS_VARIABLES = {
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
def page_style() -> Iterator[None]:
    """Apply the page's style while a figure is drawn and saved."""
    from matplotlib import rc_context, rcdefaults

    with rc_context(), warnings.catch_warnings():
        # DejaVu, which Matplotlib lays text out with, has no Chinese; browsers use their own fonts.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        rcdefaults()
        with rc_context(_STYLE):
            yield


def svg(figure: Any, name: str, description: str) -> str:
    """Return a figure as an ``<svg>`` element.

    Args:
        figure: A Matplotlib figure, drawn within ``page_style``.
        name: Prefix of the element's ids; unique on the page.
        description: Text for screen readers.
    """
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
    text = re.sub(r'(style|fill|stroke)="[^"]*"', _use_page_style, text)
    text = re.sub(
        r'<svg [^>]*?viewBox="([^"]*)"[^>]*>',
        rf'<svg viewBox="\1" role="img" aria-label="{_escape_attribute(description)}">',
        text,
        count=1,
    )
    return text.replace("xlink:href", "href").strip()


def _use_page_style(attribute: re.Match[str]) -> str:
    """Return an attribute without its font family, its placeholder colors as CSS variables."""
    text = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px", attribute.group())
    text = re.sub(r"font-family: [^;\"]*;?", "", text)
    for placeholder, variable in _CSS_VARIABLES.items():
        text = text.replace(placeholder, variable)
    return text


def _escape_attribute(text: str) -> str:
    from xml.sax.saxutils import escape

    return escape(text, {'"': "&quot;"})
