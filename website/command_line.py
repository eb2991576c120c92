"""The generated parts of docs/commands.md: commands, exit codes, environment variables."""

from __future__ import annotations

import ast
import re
from itertools import pairwise
from typing import Any

import typer

from cli import app
from compressor import errors
from website.remedies import PACKAGES
from website.source_texts import ROOT
from website.tables import code, escaped, table

_VARIABLE = "Environment variable"
"""First words of the docstring of a constant that names an environment variable."""


def commands() -> str:
    """Return a section for each panel of the help, and each command in it."""
    root: Any = typer.main.get_command(app)
    context = typer.Context(root, info_name="autoglm-compress")
    visible = [command for command in root.commands.values() if not command.hidden]
    sections = []
    for panel in dict.fromkeys(command.rich_help_panel for command in visible):
        sections.append(f"## {panel}")
        for command in visible:
            if command.rich_help_panel == panel:
                sections += _command(command, f"autoglm-compress {command.name}", context)
    return "\n\n".join(sections)


def _command(command: Any, name: str, parent: typer.Context) -> list[str]:
    """Return the section of a command, and those of its subcommands."""
    context = typer.Context(command, info_name=command.name, parent=parent)
    rows, arguments = [], []
    for parameter in command.get_params(context):
        record = parameter.get_help_record(context)
        if record is None or "--help" in record[0]:
            continue
        label, text = _option(*record)
        if not label.startswith("-"):
            metavar = label.split()[0]
            label = metavar
            arguments.append(metavar if "required" in record[1] else f"[{metavar}]")
        rows.append([code(label), escaped(text)])
    subcommands = getattr(command, "commands", {})
    options = "[OPTIONS]" if any(row[0].startswith("`-") for row in rows) else ""
    usage = " ".join([name, options, "[COMMAND]" if subcommands else "", *arguments]).split()
    paragraphs = [" ".join(part.split()) for part in (command.help or "").split("\n\n")]
    section = [f"### {name.removeprefix('autoglm-compress ')}", *map(escaped, paragraphs)]
    section += [f"`{' '.join(usage)}`"]
    section += [table(["Argument or option", ""], rows)] if rows else []
    for subcommand in subcommands.values():
        section += _command(subcommand, f"{name} {subcommand.name}", context)
    return section


def _option(label: str, text: str) -> tuple[str, str]:
    """Return an option and its help in words: ``[default: 2; x>=1]`` becomes a sentence."""
    details = re.search(r"\s*\[((?:default|required|x|\d)[^\]]*)\]\s*$", text)
    if details:
        text = text[: details.start()]
        for part in details[1].split("; "):
            if part.startswith("default: "):
                text += f" Default: `{part.removeprefix('default: ').strip('()')}`."
            elif part == "required":
                text += " Required."
            else:
                text += f" {_range(part)}."
    return label.replace(" range>", ">"), text


def _range(text: str) -> str:
    """Return a range such as ``0.01<=x<=1.0`` in words."""
    low = re.match(r"([\d.]+)<=x|x>=([\d.]+)", text)
    high = re.search(r"x<=([\d.]+)", text)
    words = [
        f"at least {low[1] or low[2]}" if low else "",
        f"at most {high[1]}" if high else "",
    ]
    return ", ".join(filter(None, words)).capitalize()


def exit_codes() -> str:
    """Return the table of exit codes, from the classes of errors."""
    rows = [[code("0"), "success", ""]]
    classes: list[type[errors.CompressError]] = _subclasses(errors.CompressError)
    for exit_code in sorted({error.exit_code for error in classes}):
        causes = [
            (error.__doc__ or "").strip().splitlines()[0].rstrip(".")
            for error in classes
            if error.exit_code == exit_code
        ]
        rows.append([code(str(exit_code)), _MEANING[exit_code], "<br>".join(map(escaped, causes))])
    return table(["Code", "Meaning", "Errors"], rows)


_MEANING = {
    1: "a pass failed, or a check found problems",
    2: "usage or configuration",
    3: "a gate failed",
    4: "a damaged artifact",
    130: "interrupted",
}


def _subclasses(base: type[errors.CompressError]) -> list[type[errors.CompressError]]:
    direct = [error for error in base.__subclasses__() if error.__module__ == errors.__name__]
    return [each for error in direct for each in (error, *_subclasses(error))]


def environment_variables() -> str:
    """Return the table of environment variables, from the docstrings of their constants."""
    return table(["Variable", "Meaning"], [[code(name), text] for name, text in _variables()])


def _variables() -> list[tuple[str, str]]:
    found = []
    for package in PACKAGES:
        for file in sorted((ROOT / package).rglob("*.py")):
            body = ast.parse(file.read_text(encoding="utf-8")).body
            for constant, docstring in pairwise(body):
                match constant, docstring:
                    case (
                        ast.Assign(value=ast.Constant(value=str(name))),
                        ast.Expr(value=ast.Constant(value=str(text))),
                    ) if text.startswith(_VARIABLE):
                        words = " ".join(text.split()).removeprefix(_VARIABLE).lstrip(": ")
                        found.append((name, escaped(words.replace("``", "`"))))
    return sorted(found)
