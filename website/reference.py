"""Write the generated parts of the pages in ``docs/``: ``python -m website.reference``.

A generated part is between the comments ``<!-- generated: NAME -->`` and ``<!-- end -->``; the text
around it is written by hand.
"""

from __future__ import annotations

import re
import sys
import tomllib
from collections.abc import Callable, Iterator
from importlib.metadata import entry_points
from pathlib import Path

from website import command_line, fields, messages
from website.source_texts import ROOT

PARTS: dict[str, Callable[[], str]] = {
    "commands": command_line.commands,
    "decisions": lambda: decisions(ROOT / "docs" / "decisions"),
    "environment-variables": command_line.environment_variables,
    "evaluate": fields.evaluate_fields,
    "exit-codes": command_line.exit_codes,
    "families": fields.families,
    "formats": fields.formats,
    "gates": fields.gate_fields,
    "messages": messages.messages,
    "metrics": fields.metric_names,
    "model": fields.model_fields,
    "passes": fields.passes,
    "pipeline": fields.pipeline_fields,
    "renamed-keys": fields.renamed_keys,
    "sources": fields.sources,
    "steps": fields.step_fields,
}
"""Name of a generated part to the function that returns its Markdown."""
_PART = re.compile(r"(<!-- generated: ([\w-]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def main() -> None:
    """Write the pages whose generated parts are out of date."""
    _check_installation()
    for page, text in pages():
        if page.read_text(encoding="utf-8") != text:
            page.write_text(text, encoding="utf-8")
            sys.stdout.write(f"wrote {page.relative_to(ROOT)}\n")


def _check_installation() -> None:
    """End with an error if passes or formats of pyproject.toml are not installed.

    Their tables are made from what is installed, and would lack them.
    """
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    missing = [
        f"{name} ({group})"
        for group, points in project["entry-points"].items()
        for name in points.keys() - {point.name for point in entry_points(group=group)}
    ]
    if missing:
        raise SystemExit(
            f"not installed: {', '.join(sorted(missing))}; run: pip install --no-deps -e ."
        )


def pages() -> Iterator[tuple[Path, str]]:
    """Yield every page with generated parts, and its text with all parts up to date."""
    for page in sorted((ROOT / "docs").rglob("*.md")):
        text = page.read_text(encoding="utf-8")
        if _PART.search(text):
            yield page, _PART.sub(_fill, text)


def decisions(folder: Path) -> str:
    """Return the list of decisions, with the titles of their pages."""
    titles = {
        page: page.read_text(encoding="utf-8").partition("\n")[0].partition(". ")[2]
        for page in sorted(folder.glob("[0-9]*.md"))
    }
    return "\n".join(f"- [{page.name[:4]} {title}]({page.name})" for page, title in titles.items())


def _fill(match: re.Match[str]) -> str:
    return f"{match[1]}\n{PARTS[match[2]]()}\n\n{match[3]}"


if __name__ == "__main__":
    main()
