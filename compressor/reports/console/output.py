"""What the commands print. Results go to stdout, progress and errors to stderr."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console, JustifyMethod
from rich.table import Table
from rich.text import Text

from compressor.analysis.catalogue import CatalogueEntry
from compressor.analysis.compare import Comparison
from compressor.analysis.doctor import Diagnosis
from compressor.analysis.model_sizes import ModelSizes
from compressor.artifacts.manifest import Manifest, Metric
from compressor.artifacts.runs import GateResult
from compressor.artifacts.store import Artifact
from compressor.engine.plan.plan import Plan
from compressor.engine.run import events
from compressor.errors import CompressError
from compressor.generation.generate import Generated
from compressor.reports.console import progress
from compressor.reports.rows import formats
from compressor.reports.rows.gate_rows import COLUMNS, gate_row
from compressor.reports.rows.ladder import Ladder, LadderRow
from compressor.reports.rows.run import RunReport

_WIDTH = 132
_out = Console(width=None if Console().is_terminal else _WIDTH, highlight=False)
_err = Console(stderr=True, highlight=False)
_COPIED = {"step", "artifact"}
"""Columns of what a person copies: they stay in one piece."""
_MARKS = {"better": "green", "worse": "red", "noise": "dim", "same": "dim"}


@contextmanager
def listener(*, quiet: bool) -> Iterator[events.Listener]:
    """Whom a run tells: a display, or with ``quiet`` only the lines that matter to a log."""
    with progress.listener(_err) as shown:
        yield progress.PlainLines(_err) if quiet else shown


def say(text: str) -> None:
    """One line."""
    _out.print(Text(text), soft_wrap=True)


def stream(text: str) -> None:
    """A piece of what a model says, at once."""
    _out.print(text, end="", markup=False, soft_wrap=True)


def render_generated(found: Generated) -> None:
    """The end of what a model said, and how fast it was."""
    _out.print()
    decode = (
        f", {found.decode_tokens_per_second:.0f} tokens/s" if found.decode_tokens_per_second else ""
    )
    _err.print(
        f"[dim]{found.prompt_tokens} tokens of prompt, {found.prefill_tokens_per_second:.0f} tokens/s; "
        f"{found.tokens} of answer{decode}; {'ended' if found.finished else 'cut'}[/dim]"
    )


def print_error(error: CompressError) -> None:
    """What happened, and what to do; never a traceback."""
    _err.print(Text("error: ", style="bold red") + Text(error.what), soft_wrap=True)
    if error.remedy:
        _err.print(Text(f"  → {error.remedy}"), soft_wrap=True)


def _table(*columns: str, title: str | None = None) -> Table:
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="bold")
    for index, name in enumerate(columns):
        justify: JustifyMethod = "left" if index == 0 else "right"
        table.add_column(name, justify=justify, overflow="fold", no_wrap=name in _COPIED)
    return table


def _pairs(rows: Sequence[tuple[str, str]], title: str | None = None) -> None:
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, show_header=False)
    table.add_column(style="dim")
    table.add_column(overflow="fold")
    for name, value in rows:
        table.add_row(Text(name), Text(value))
    _out.print(table)


def render_run(report: RunReport, folder: Path) -> None:
    """The ladder, the gates, and where the pages are."""
    _out.print()
    _out.print(_ladder(report.ladder))
    if report.ladder.has_stand_in:
        say(formats.STAND_IN_EXPLAINED)
    if report.gates:
        _out.print()
        render_gates(report.gates)
    _out.print()
    say(f"report: {folder / 'report.html'}")


def _ladder(ladder: Ladder) -> Table:
    table = _table("step", *(formats.label(name) for name in ladder.columns), "built in")
    for row in ladder.rows:
        cells = [_cell(row, name) for name in ladder.columns]
        table.add_row(Text(row.step), *cells, Text(formats.duration(row.seconds), style="dim"))
    return table


def _cell(row: LadderRow, name: str) -> Text:
    metric = row.metrics.get(name)
    if metric is None:
        return Text("–", style="dim")
    text = Text(formats.metric(metric) + (formats.STAND_IN if row.stood_in_for(name) else ""))
    change = row.against_parent.get(name)
    if change is not None and change.verdict != "same":
        shown = (
            formats.difference(change.absolute, metric.unit)
            if metric.unit == "fraction"
            else formats.ratio(change.ratio)
        )
        text.append(f" {shown}", style=_MARKS[change.verdict])
    return text


def render_gates(gates: Sequence[GateResult]) -> None:
    """Every gate: what was found, its interval, the limit, the verdict."""
    table = _table(*COLUMNS)
    for gate in gates:
        *cells, verdict = gate_row(gate).cells
        table.add_row(
            *map(Text, cells), Text(verdict, style="green" if gate.passed else "bold red")
        )
    _out.print(table)


def render_plan(plan: Plan) -> None:
    """The steps, what is there of them, and what they will take."""
    table = _table(
        "step", "pass", "reads", "artifact", "state", "parameters", "MACs", "time", "memory", "disk"
    )
    for step in plan.steps:
        estimate = step.estimate
        reads = ", ".join(
            name if role == "parent" else f"{role}: {name}" for role, name in step.inputs.items()
        )
        table.add_row(
            Text(step.name),
            step.pass_name,
            Text(reads or "–"),
            step.directory,
            step.state,
            *(
                _known(value, unit)
                for value, unit in (
                    (estimate.model.parameters, "count"),
                    (estimate.model.macs, "count"),
                    (estimate.seconds, "s"),
                    (estimate.peak_memory_bytes, "bytes"),
                    (estimate.disk_bytes, "bytes"),
                )
            ),
        )
    _out.print(table)
    say(
        f"store: {plan.store.root}, seed {plan.seed}, device {plan.device}; times and memory are estimates"
    )


def render_rows(title: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Rows of equal keys as a table; nothing for none."""
    if not rows:
        return
    table = _table(*(name.replace("_", " ") for name in rows[0]), title=title)
    for row in rows:
        table.add_row(*(_figure(value) for value in row.values()))
    _out.print(table)


def _figure(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.3f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _known(value: float | None, unit: str) -> str:
    if value is None:
        return "–"
    return {"count": formats.count, "s": formats.duration, "bytes": formats.size}[unit](value)


def render_metrics(title: str, metrics: Sequence[Metric]) -> None:
    """Every metric with its interval."""
    table = _table("metric", "value", "95 %", "samples", title=title)
    for metric in metrics:
        table.add_row(
            Text(metric.name), formats.metric(metric), formats.interval(metric), str(metric.samples)
        )
    _out.print(table)


def render_artifact(artifact: Artifact) -> None:
    """One artifact: what it is, where it comes from, what was measured."""
    from compressor.reports.rows import facts

    manifest: Manifest = artifact.manifest
    _pairs(facts.about(manifest), title=artifact.name)
    _pairs([(f"config.{name}", value) for name, value in facts.flat(manifest.pass_.config)])
    _pairs(facts.lineage(manifest) + facts.environment(manifest))
    if engine := facts.engine(artifact.model):
        _pairs(engine, title="engine")
    for note in facts.notes(manifest):
        say(f"note: {note}")
    if manifest.metrics:
        _out.print()
        render_metrics("measured", manifest.metrics)
    _out.print()
    table = _table("file", "size", "sha256")
    for name, entry in manifest.files.items():
        table.add_row(Text(name), formats.size(entry.bytes), formats.short(entry.sha256))
    _out.print(table)


def render_store(root: Path, artifacts: Sequence[Artifact]) -> None:
    """All artifacts of a store."""
    if not artifacts:
        say(f"{root} holds no artifact")
        return
    table = _table("artifact", "step", "kind", "size", "top1", "latency p50", "created")
    for artifact in artifacts:
        manifest = artifact.manifest
        figures = [formats.metric(manifest.metric(name)) for name in ("top1", "latency_p50_ms")]
        table.add_row(
            Text(artifact.name),
            Text(manifest.step),
            manifest.kind.value,
            formats.size(manifest.model_bytes),
            *figures,
            manifest.created,
        )
    _out.print(table)


def render_sizes(sizes: ModelSizes) -> None:
    """Parameters by part, and memory by precision."""
    table = _table("part", "parameters", *sizes.bytes_at, title=f"{sizes.family}:{sizes.preset}")
    for part, count in {**sizes.parts, "total": sizes.parameters}.items():
        share = count / sizes.parameters
        memory = [formats.size(total * share) for total in sizes.bytes_at.values()]
        table.add_row(
            Text(part, style="bold" if part == "total" else ""), formats.count(count), *memory
        )
    _out.print(table)
    if sizes.macs is not None:
        say(
            f"{formats.count(sizes.macs)} multiply-accumulates for one {sizes.unit}; memory is that of the weights alone"
        )


def render_catalogue(entries: Sequence[CatalogueEntry]) -> None:
    """Everything installed, by group."""
    for group in dict.fromkeys(entry.group for entry in entries):
        table = Table(box=None, pad_edge=False, header_style="bold")
        table.add_column(
            {"pass": "pass", "data source": "data source"}.get(group, group), min_width=18
        )
        table.add_column("reads → writes" if group == "pass" else "", min_width=14)
        table.add_column("")
        for entry in entries:
            if entry.group == group:
                flow = (
                    f"{', '.join(entry.reads)} → {entry.writes}"
                    if entry.writes
                    else ", ".join(entry.presets)
                )
                table.add_row(Text(entry.name), Text(flow), Text(entry.summary))
        _out.print(table)
        _out.print()
    say("autoglm-compress passes explain NAME tells every field")


def render_entry(entry: CatalogueEntry) -> None:
    """One pass, data source or family, with every field."""
    say(f"{entry.group} {entry.name}")
    _out.print()
    say(entry.description)
    if entry.writes:
        say(f"reads {', '.join(entry.reads)}; writes {entry.writes}")
    if entry.presets:
        say(f"presets: {', '.join(entry.presets)}")
    _out.print()
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("field", "type", "default", ""):
        table.add_column(name, overflow="fold")
    for field in entry.fields:
        default = "required" if field.required else _default(field.default)
        table.add_row(Text(field.name), Text(field.type), Text(default), Text(field.description))
    _out.print(table)


def _default(value: object) -> str:
    if value is None:
        return "–"
    return "see below" if isinstance(value, dict) else str(value)


def render_compare(comparison: Comparison) -> None:
    """Two artifacts side by side."""
    same = "byte for byte the same" if comparison.same_model else "different"
    say(f"the models are {same}")
    table = _table("metric", comparison.a, comparison.b, "change", "ratio", "")
    for pair in comparison.metrics:
        change = "–" if pair.change is None else formats.difference(pair.change, pair.unit)
        noise = "within noise" if pair.overlap and pair.change else ""
        values = [
            "–" if value is None else formats.number(value, pair.unit) for value in (pair.a, pair.b)
        ]
        table.add_row(Text(pair.name), *values, change, formats.ratio(pair.ratio), noise)
    _out.print(table)
    if comparison.differences:
        _out.print()
        table = _table("differs in", comparison.a, comparison.b)
        for difference in comparison.differences:
            table.add_row(Text(difference.what), Text(str(difference.a)), Text(str(difference.b)))
        _out.print(table)


def print_table(
    columns: Sequence[str], rows: Sequence[Sequence[str]], *, left_out: int = 0
) -> None:
    """Rows of text, and how many more there are."""
    table = _table(*columns)
    for row in rows:
        table.add_row(*map(Text, row))
    _out.print(table)
    if left_out:
        say(f"… and {left_out} more (--json tells them)")


def render_verify(found: Mapping[Path, str | None]) -> None:
    """Each artifact with its verdict."""
    for path, problem in found.items():
        say(f"{'✓' if problem is None else '✗'} {path.name}" + (f"\n{problem}" if problem else ""))


def render_garbage(doomed: Mapping[Path, int], *, dry_run: bool) -> None:
    """What went, or would go."""
    for path, size in doomed.items():
        say(f"{'would remove' if dry_run else 'removed'} {path} ({formats.size(size)})")
    say(f"{len(doomed)} of them, {formats.size(sum(doomed.values()))}")


def render_doctor(diagnosis: Diagnosis) -> None:
    """The machine, and every check."""
    _pairs([(name, str(value)) for name, value in diagnosis.machine.items()], title="machine")
    _out.print()
    for check in diagnosis.checks:
        bad = Text("– ", style="yellow") if check.optional else Text("✗ ", style="bold red")
        mark = Text("✓ ", style="green") if check.ok else bad
        _out.print(
            mark
            + Text(
                f"{check.name}: {check.value}" + (f"\n    → {check.remedy}" if check.remedy else "")
            )
        )
