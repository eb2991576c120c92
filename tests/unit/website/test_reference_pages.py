"""The generated parts of the pages are up to date and complete."""

from __future__ import annotations

import ast
import html
import re
from pathlib import Path
from typing import Any

import pytest
import typer

from cli import app
from website.fields import own_entries
from website.messages import SECTIONS, section_of
from website.reference import PARTS, pages
from website.remedies import PACKAGES, Message, collect, read_module
from website.source_texts import ROOT, UnknownRemedyError

GENERATED = list(pages())


@pytest.mark.parametrize(("page", "text"), GENERATED, ids=[page.stem for page, _ in GENERATED])
def test_a_page_is_up_to_date(page: Path, text: str) -> None:
    assert page.read_text() == text, "run: python -m website.reference"


def test_every_generated_part_is_on_a_page() -> None:
    text = "".join(text for _, text in GENERATED)
    assert {name for name in PARTS if f"<!-- generated: {name} -->" not in text} == set()


def test_the_pipeline_page_has_every_pass_and_source_with_every_field() -> None:
    text = (ROOT / "docs" / "pipeline.md").read_text()
    for entry in own_entries():
        if entry.group in {"pass", "data source"}:
            section = text.partition(f"### {entry.name}\n")[2].partition("\n### ")[0]
            fields = {field.name for field in entry.fields} - {"source"}
            assert {name for name in fields if f"| `{name}` |" not in section} == set(), entry.name


def test_the_command_page_has_every_command_with_every_option() -> None:
    text = (ROOT / "docs" / "commands.md").read_text()
    root: Any = typer.main.get_command(app)
    for command in root.commands.values():
        if not command.hidden:
            section = text.partition(f"\n### {command.name}\n")[2].partition("\n### ")[0]
            options = [name for option in command.params for name in option.opts if "--" in name]
            assert [name for name in options if name not in section] == [], command.name


def remedies_of(source: str, folder: Path) -> list[tuple[str, str]]:
    file = folder / "module.py"
    file.write_text(source)
    return [(message.what, message.remedy) for message in read_module(file)]


def test_a_remedy_is_collected_wherever_its_text_comes_from(tmp_path: Path) -> None:
    source = """
REMEDY = "copy it again"

def check(name, size):
    what = f"{name} has {size} bytes"
    raise DataError(what, remedy=REMEDY)

def choose(flag):
    remedy = "name another" if flag else f"write {flag}:NAME"
    raise UsageError("there is " "none", remedy=remedy)

def pass_on(error):
    raise ModelError("seen before", remedy=error.remedy)

def look_up(name):
    raise UsageError(f"unknown {name}", remedy=describe(name))

def describe(name):
    return f"one of {name}"

KNOWN = {28: ("the disk is full: {place}", "free some space")}

def report(number, place):
    what, remedy = KNOWN[number]
    raise StorageError(what.format(place=place), remedy=remedy)
"""
    assert sorted(remedies_of(source, tmp_path)) == [
        ("the disk is full: …", "free some space"),
        ("there is none", "name another"),
        ("there is none", "write …:NAME"),
        ("unknown …", "one of …"),
        ("… has … bytes", "copy it again"),
    ]


def test_a_field_check_that_says_what_to_do_is_collected(tmp_path: Path) -> None:
    source = """
class Config(Record):
    @model_validator(mode="after")
    def _check(self):
        raise ValueError(f"`{self.name}` has no effect with `x`: leave it out")
"""
    assert remedies_of(source, tmp_path) == [("`…` has no effect with `x`", "leave it out")]


def test_a_remedy_that_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    for text in ('(lambda: "x")', "computed(1)"):
        with pytest.raises(UnknownRemedyError, match=r"lambda|computed"):
            remedies_of(f'raise DataError("no", remedy={text})', tmp_path)


def test_every_message_has_a_section_and_a_row() -> None:
    found = collect()
    assert len(found) > 400
    text = (ROOT / "docs" / "messages.md").read_text()
    assert {section_of(message) for message in found} <= set(SECTIONS)
    plain = html.unescape(re.sub(r"\\(.)", r"\1", text))
    missing = [message for message in found if message.remedy not in plain]
    assert missing == []


def texts_of_the_code() -> str:
    """Return all texts in the code, one a line, with ``…`` for formatted values."""
    texts = []
    for package in PACKAGES:
        for file in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text())):
                if isinstance(node, ast.Constant) and isinstance(node.value, str):
                    texts.append(node.value)
                elif isinstance(node, ast.JoinedStr):
                    parts = [getattr(value, "value", None) for value in node.values]
                    texts.append("".join(x if isinstance(x, str) else "…" for x in parts))
    return "\n".join(texts).replace("`", "")


def symptoms(page: Path) -> list[str]:
    """Return the messages in the first columns of the tables of a page."""
    cells = re.findall(r"^\| ([^|]*`[^|]*) \|", page.read_text(), re.MULTILINE)
    return [message for cell in cells for message in re.findall("`(.+?)`", cell)]


def test_every_message_in_troubleshooting_is_one_of_the_program() -> None:
    code = texts_of_the_code()
    messages = symptoms(ROOT / "docs" / "troubleshooting.md")
    assert len(messages) > 50
    for message in messages:
        for piece in re.split(r"…|; no pass reads it", message):
            assert piece.strip(" :;") in code, message


def test_troubleshooting_has_the_same_messages_in_chinese() -> None:
    english, chinese = (ROOT / "docs" / name for name in ("", "zh"))
    assert symptoms(chinese / "troubleshooting.md") == symptoms(english / "troubleshooting.md")


def test_the_longest_prefix_chooses_the_section() -> None:
    assert section_of(Message("calibration/table.py", 1, "", "")) == "qat (ptq)"
    assert section_of(Message("calibration/sources/x.py", 1, "", "")) == "Data sets"
