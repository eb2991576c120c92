"""Print comparisons of two artifacts, and the result of a bisection."""

from __future__ import annotations

from collections.abc import Sequence

from rich.text import Text

from compressor.analysis.bisect import Bisection
from compressor.analysis.compare import Comparison, MetricPair
from compressor.analysis.layerwise import LayerComparison, LayerDifference
from compressor.analysis.tensors import TensorDifference
from compressor.evaluation.metrics import metric_named
from compressor.reports.console.terminal import new_table, out, print_line, print_table
from compressor.reports.rows import formatting

_MOST_ROWS = 16
"""Number of tensors or layers printed; --json prints all."""


def render_comparison(comparison: Comparison) -> None:
    """Print the metrics of two artifacts side by side, their differences, tensors and layers."""
    same = "byte for byte identical" if comparison.same_model else "different"
    print_line(f"the models are {same}")
    table = new_table("metric", comparison.a, comparison.b, "change", "ratio", "")
    for pair in comparison.metrics:
        table.add_row(Text(pair.name), *_metric_cells(pair))
    out.print(table)
    if comparison.differences:
        out.print()
        table = new_table("difference", comparison.a, comparison.b)
        for difference in comparison.differences:
            table.add_row(Text(difference.what), Text(str(difference.a)), Text(str(difference.b)))
        out.print(table)
    if comparison.tensors is not None:
        _render_tensors(comparison.tensors)
    if comparison.layers is not None:
        _render_layers(comparison.layers)


def _metric_cells(pair: MetricPair) -> tuple[str, ...]:
    """Return both values, change, ratio, and a note if the change is within noise."""
    return (
        formatting.optional_number(pair.a, pair.unit),
        formatting.optional_number(pair.b, pair.unit),
        formatting.DASH if pair.change is None else formatting.difference(pair.change, pair.unit),
        formatting.ratio(pair.ratio),
        "within noise" if pair.overlap and pair.change else "",
    )


def _render_tensors(tensors: Sequence[TensorDifference]) -> None:
    """Print the number of equal tensors, and the tensors that differ most."""
    differing = [tensor for tensor in tensors if not tensor.equal]
    equal = len(tensors) - len(differing)
    print_line(f"\n{equal} of {len(tensors)} tensors have equal values")
    rows = [
        (tensor.name, _shape(tensor.a), _shape(tensor.b), _decibels(tensor.snr_db))
        for tensor in differing[:_MOST_ROWS]
    ]
    if rows:
        columns = ("tensor", "shape in a", "shape in b", "SNR")
        print_table(columns, rows, omitted=len(differing) - len(rows))


def _render_layers(layers: LayerComparison) -> None:
    """Print the layers that add most error, the first layer that differs, and output errors."""
    first = layers.parts_at
    difference = f"outputs differ from {first} on" if first else "no outputs differ"
    common = f"{len(layers.layers)} common layers"
    print_line(f"\n{layers.samples} samples, {common}; {difference}")
    if layers.paired_by_name:
        print_line(
            "layers are paired by name alone: neither file notes its layers, so equal names need "
            "not mean the same layer"
        )
    for model, names in (("first", layers.only_a), ("second", layers.only_b)):
        if names:
            print_line(f"only in the {model} model: {', '.join(names)}")
    rows = [layer_cells(layer) for layer in layers.layers[:_MOST_ROWS]]
    columns = ("layer", "order", "added error", "SNR of its output")
    print_table(columns, rows, omitted=len(layers.layers) - len(rows))
    outputs = ", ".join(f"{name} {_error(error)}" for name, error in layers.answers.items())
    print_line(f"error of the model outputs, Σ(b−a)² / Σa²: {outputs}")


def layer_cells(layer: LayerDifference) -> tuple[str, str, str, str]:
    """Return name, order, added error, and signal-to-noise ratio of the output."""
    snr = "exact" if layer.error == 0 else _decibels(layer.snr_db)
    added = formatting.DASH if layer.added is None else _error(layer.added)
    return layer.layer, str(layer.order), added, snr


def render_bisection(bisection: Bisection) -> None:
    """Print the loss of each step, the layers that were restored, and the layer that lost most."""
    unit = metric_named(bisection.metric).unit
    print_line(f"{bisection.metric} on {bisection.samples} samples")
    losses = [
        (
            loss.step,
            loss.pass_name,
            formatting.number(loss.before, unit),
            formatting.number(loss.after, unit),
            formatting.difference(-loss.lost, unit),
        )
        for loss in bisection.passes
    ]
    print_table(("step", "pass", "parent", "step's value", "change"), losses)
    print_line(f"\nlayers of {bisection.culprit}:")
    trials = [
        (_layer_names(trial.restored), formatting.number(trial.value, unit), f"{trial.error:.2e}")
        for trial in bisection.trials
    ]
    if trials:
        print_table(("restored layers", bisection.metric, "error of the outputs"), trials)
    if bisection.layer:
        print_line(f"largest loss in layer {bisection.layer}")
    else:
        print_line(f"no single layer found: {bisection.why_not}")


def _layer_names(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{len(names)}: {names[0]} … {names[-1]}"


def _error(error: float) -> str:
    return "0" if error == 0 else f"{error:.2e}"


def _decibels(value: float | None) -> str:
    return formatting.DASH if value is None else f"{value:.1f} dB"


def _shape(shape: tuple[int, ...] | None) -> str:
    return formatting.DASH if shape is None else str(list(shape))
