"""Print the diagnosis of this machine, and the catalogue of installed plugins."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from compressor.analysis.catalogue import CatalogueEntry
from compressor.analysis.doctor import Check, Diagnosis
from compressor.reports.console.terminal import out, print_line, print_pairs, print_wrapped


def render_doctor(diagnosis: Diagnosis) -> None:
    """Print the machine, and the outcome of every check."""
    machine = [(name, str(value)) for name, value in diagnosis.machine.items()]
    print_pairs(machine, title="machine")
    out.print()
    for check in diagnosis.checks:
        out.print(_check_line(check))


def _check_line(check: Check) -> Text:
    if check.ok:
        mark = Text("✓ ", style="green")
    elif check.optional:
        mark = Text("– ", style="yellow")
    else:
        mark = Text("✗ ", style="bold red")
    remedy = f"\n    → {check.remedy}" if check.remedy else ""
    return mark + Text(f"{check.name}: {check.value}{remedy}")


def render_catalogue(entries: Sequence[CatalogueEntry]) -> None:
    """Print all installed plugins, one table per group."""
    for group in dict.fromkeys(entry.group for entry in entries):
        out.print(_group_table(group, [entry for entry in entries if entry.group == group]))
        out.print()
    print_line("autoglm-compress passes explain NAME prints the fields of one of them")


def _group_table(group: str, entries: Sequence[CatalogueEntry]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column(group, min_width=18)
    table.add_column("reads → writes" if group == "pass" else "", min_width=14)
    table.add_column("")
    for entry in entries:
        details = (
            f"{', '.join(entry.reads)} → {entry.writes}"
            if entry.writes
            else ", ".join(entry.presets)
        )
        table.add_row(Text(entry.name), Text(details), Text(entry.summary))
    return table


def render_entry(entry: CatalogueEntry) -> None:
    """Print one plugin with all its fields."""
    print_line(f"{entry.group} {entry.name}")
    out.print()
    print_line(entry.description)
    if entry.writes:
        print_line(f"reads {', '.join(entry.reads)}; writes {entry.writes}")
    for label, values in (
        ("needs", entry.needs),
        ("presets", entry.presets),
        ("other names", entry.aliases),
    ):
        if values:
            print_line(f"{label}: {', '.join(values)}")
    if not entry.fields:
        return
    out.print()
    for field in entry.fields:
        default = "required" if field.required else f"default {_default(field.default)}"
        heading = Text(field.name, style="bold")
        details = ", ".join(filter(None, (field.type, field.limits, default)))
        heading.append(f"  {details}", style="not bold dim")
        print_wrapped(heading)
        print_wrapped(Text(field.description), indent=4)


def _default(value: object) -> str:
    """Format a default as YAML would be written; nested records are explained field by field."""
    match value:
        case None:
            return "null"
        case bool():
            return str(value).lower()
        case dict():
            return "see below"
        case list() | tuple():
            return f"[{', '.join(map(_default, value))}]"
        case _:
            return str(value)
