"""Print models: their facts, the size of presets, and the speed of generated text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.text import Text

from compressor.analysis.model_report import ModelReport, PassReport
from compressor.analysis.model_sizes import ModelSizes
from compressor.generation.generate import Generated
from compressor.generation.requests import FinishReason
from compressor.reports.console.terminal import (
    err,
    new_table,
    new_text_table,
    out,
    print_line,
    print_pairs,
)
from compressor.reports.rows import formatting

if TYPE_CHECKING:
    from compressor.generation.conversation import Reply
    from compressor.models.checkpoint.pickled import ConvertedWeights

_ENDS = {
    FinishReason.STOP: "end of text",
    FinishReason.LENGTH: "stopped at --max-tokens, or at the end of the context",
    FinishReason.TIME: "time is over",
    FinishReason.CANCELLED: "stopped by Ctrl-C",
}
_MOST_ROWS = 30
"""Rows of a table of files."""


def render_model(report: ModelReport) -> None:
    """Print what a model is, its parts, and the passes that it can go through."""
    print_pairs(_model_rows(report), title=report.path)
    print_pairs(report.details)
    if report.dtypes:
        out.print()
        _render_dtypes(report)
    if report.files and (report.format is not None or report.files[1:]):
        out.print()
        _render_files(report)
    if report.problem is not None:
        out.print()
        print_line(f"It cannot be opened: {report.problem}")
    render_suitability(report.passes, report.path)
    if report.remedy is not None:
        print_line(f"→ {report.remedy}")


def render_suitability(passes: Sequence[PassReport], path: str) -> None:
    """Print the passes that a model can go through, and the reasons against the others."""
    out.print()
    table = new_text_table("pass", "", f"for {path}", "remedy")
    shared = {pass_.remedies for pass_ in passes}
    for pass_ in passes:
        mark = Text("✓", style="green") if pass_.suitable else Text("–", style="dim")
        help_text = (
            "see below" if len(shared) == 1 and pass_.remedies else "; ".join(pass_.remedies)
        )
        table.add_row(Text(pass_.name), mark, Text("\n".join(pass_.reasons)), Text(help_text))
    out.print(table)


def _model_rows(report: ModelReport) -> list[tuple[str, str]]:
    rows = [("Model", report.title)]
    if report.format is not None:
        rows.append(("Format", f"{report.format}: {report.summary}"))
        rows.append(("Runtime", report.runtime or formatting.DASH))
    rows += [
        ("Size", formatting.optional_number(report.size_bytes, "bytes")),
        ("Parameters", formatting.optional_number(report.parameters, "count")),
    ]
    if report.macs is not None:
        rows.append(("MACs", formatting.count(report.macs)))
    if report.also:
        hint = "name one of its files, such as config.json, to use it"
        rows.append(("Also recognized as", f"{', '.join(report.also)} ({hint})"))
    if report.inner:
        rows.append(
            (
                "Other models in it",
                _shortened([f"{inner.path}: {inner.title}" for inner in report.inner]),
            )
        )
    return rows


def _shortened(names: Sequence[str]) -> str:
    more = f"\n… and {len(names) - _MOST_ROWS} more" if names[_MOST_ROWS:] else ""
    return "\n".join(names[:_MOST_ROWS]) + more


def _render_dtypes(report: ModelReport) -> None:
    table = new_table("dtype", "tensors", "values", "share")
    for entry in report.dtypes:
        share = f"{100 * entry.share:.1f} %"
        table.add_row(Text(entry.dtype), str(entry.tensors), formatting.count(entry.values), share)
    out.print(table)


def _render_files(report: ModelReport) -> None:
    used = [file for file in report.files if file.used]
    unused = [file for file in report.files if not file.used]
    for title, files in (("file", used), ("file that nothing reads", unused)):
        if not files:
            continue
        table = new_text_table(title, "size", "")
        for file in files[:_MOST_ROWS]:
            table.add_row(Text(file.name), formatting.size(file.size_bytes), Text(file.note or ""))
        out.print(table)
        if files[_MOST_ROWS:]:
            print_line(f"… and {len(files) - _MOST_ROWS} more (--json prints all)")


def render_sizes(sizes: ModelSizes) -> None:
    """Print parameters by part, and the memory of the weights at each precision."""
    table = new_table("part", "parameters", *sizes.bytes_at, title=f"{sizes.family}:{sizes.preset}")
    for part, count in {**sizes.parts, "total": sizes.parameters}.items():
        share = count / sizes.parameters
        memory = [formatting.size(total * share) for total in sizes.bytes_at.values()]
        name = Text(part, style="bold" if part == "total" else "")
        table.add_row(name, formatting.count(count), *memory)
    out.print(table)
    if sizes.macs is not None:
        macs = f"{formatting.count(sizes.macs)} multiply-accumulates per {sizes.unit}"
        print_line(f"{macs}; memory is that of the weights alone")


def render_generation(generated: Generated) -> None:
    """End the line of generated text, and print token counts and speed to stderr."""
    out.print()
    rate = generated.decode_tokens_per_second
    decode = f", {rate:.0f} tokens/s" if rate else ""
    end = "end of text" if generated.finished else "stopped at --max-tokens"
    err.print(
        f"[dim]{generated.prompt_tokens} prompt tokens, "
        f"{generated.prefill_tokens_per_second:.0f} tokens/s; "
        f"{generated.tokens} generated tokens{decode}; {end}[/dim]"
    )


def render_chat_start(context_length: int) -> None:
    """Print how a chat is held."""
    err.print(
        f"[dim]context of {context_length} tokens; Ctrl-C ends an answer, /clear starts a new "
        "conversation, /exit or Ctrl-D ends the chat[/dim]"
    )


def render_reply(reply: Reply) -> None:
    """End the line of an answer, and print token counts and speed to stderr."""
    out.print()
    usage, rate = reply.usage, reply.tokens_per_second
    first = usage.first_token_seconds
    parts = [
        f"{usage.prompt_tokens} prompt tokens, {usage.cached_tokens} of them cached",
        *([f"first token after {formatting.milliseconds(first * 1e3)}"] if first else []),
        f"{usage.completion_tokens} generated tokens" + (f", {rate:.0f} tokens/s" if rate else ""),
        _ENDS[reply.reason],
    ]
    err.print(f"[dim]{'; '.join(parts)}[/dim]")


def render_conversion_progress(activity: str, done: int, total: int) -> None:
    """Print the progress of a conversion to stderr."""
    err.print(f"[dim]{activity}: {done} of {total}[/dim]")


def render_conversion(converted: ConvertedWeights) -> None:
    """Print what was written, and the choices that were made."""
    for note in converted.notes:
        print_line(note)
    size = formatting.size(converted.size_bytes)
    print_line(f"wrote {converted.tensors} tensors, {size}, to {converted.folder}")
