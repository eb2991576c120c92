"""Print models: their facts, the size of presets, and the speed of generated text."""

from __future__ import annotations

from rich.text import Text

from compressor.analysis.model_report import ModelReport, PassReport
from compressor.analysis.model_sizes import ModelSizes
from compressor.generation.generate import Generated
from compressor.reports.console.terminal import (
    err,
    new_table,
    new_text_table,
    out,
    print_line,
    print_pairs,
)
from compressor.reports.rows import formatting


def render_model(report: ModelReport) -> None:
    """Print a model's format and facts, and the passes that can read it."""
    print_pairs(_model_rows(report), title=report.path)
    print_pairs(report.details)
    render_suitability(report)


def render_suitability(report: ModelReport) -> None:
    """Print the passes that can read a model, and the reasons against the others."""
    out.print()
    table = new_text_table("pass", "", f"for {report.path}")
    for pass_ in report.passes:
        table.add_row(*_pass_cells(pass_))
    out.print(table)


def _model_rows(report: ModelReport) -> list[tuple[str, str]]:
    rows = [
        ("Format", f"{report.format}: {report.summary}"),
        ("Runtime", report.runtime or formatting.DASH),
        ("Size", formatting.optional_number(report.size_bytes, "bytes")),
        ("Parameters", formatting.optional_number(report.parameters, "count")),
        ("MACs", formatting.optional_number(report.macs, "count")),
    ]
    if report.also:
        rows.append(("Also recognized as", ", ".join(report.also)))
    return rows


def _pass_cells(report: PassReport) -> tuple[Text, Text, Text]:
    mark = Text("✓", style="green") if report.suitable else Text("–", style="dim")
    return Text(report.name), mark, Text("\n".join(report.reasons))


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
