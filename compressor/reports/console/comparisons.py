"""What the second looks print: two artifacts layer by layer."""

from __future__ import annotations

from collections.abc import Sequence

from compressor.analysis.bisect import Bisection
from compressor.analysis.compare import Comparison
from compressor.analysis.layerwise import LayerComparison, LayerDifference
from compressor.analysis.tensors import TensorDifference
from compressor.evaluation.metrics import METRICS
from compressor.reports.console.output import print_table, say
from compressor.reports.rows import formats

_ROWS = 16


def render_second_looks(found: Comparison) -> None:
    """Tensors and layers, as far as they were asked for."""
    if found.tensors is not None:
        render_tensors(found.tensors)
    if found.layers is not None:
        render_layers(found.layers)


def render_tensors(tensors: Sequence[TensorDifference]) -> None:
    """How many are equal, and those that differ most."""
    differing = [one for one in tensors if not one.equal]
    say(f"\n{len(tensors) - len(differing)} of {len(tensors)} tensors have the same values")
    rows = [
        (one.name, _shape(one.a), _shape(one.b), _decibels(one.snr_db)) for one in differing[:_ROWS]
    ]
    if rows:
        print_table(
            ("tensor", "shape in a", "shape in b", "SNR"), rows, left_out=len(differing) - len(rows)
        )


def render_layers(found: LayerComparison) -> None:
    """What each layer adds, the most first; where the two part; their answers."""
    parts = f"the two part at {found.parts_at}" if found.parts_at else "the two do not part"
    say(f"\n{found.samples} samples, {len(found.layers)} layers in both; {parts}")
    for which, names in (("first", found.only_a), ("second", found.only_b)):
        if names:
            say(f"only in the {which}: {', '.join(names)}")
    rows = [layer_cells(one) for one in found.layers[:_ROWS]]
    print_table(
        ("layer", "order", "adds", "SNR of what it makes"),
        rows,
        left_out=len(found.layers) - len(rows),
    )
    answers = ", ".join(f"{name} {_share(error)}" for name, error in found.answers.items())
    say(f"error of the answers, Σ(b−a)² / Σa²: {answers}")


def render_bisection(found: Bisection) -> None:
    """The chain, the step that lost most, and the layers that were put back."""
    unit = METRICS[found.metric].unit
    rows = [
        (
            one.step,
            one.pass_name,
            formats.number(one.before, unit),
            formats.number(one.after, unit),
            _lost(one.lost, unit),
        )
        for one in found.passes
    ]
    say(f"{found.metric} on {found.samples} samples")
    print_table(("step", "pass", "its parent", "it", "lost"), rows)
    say(f"\nlayers of {found.culprit}:")
    trials = [
        (_some(one.restored), formats.number(one.value, unit), f"{one.error:.2e}")
        for one in found.trials
    ]
    if trials:
        print_table(("layers put back", found.metric, "error of the answers"), trials)
    say(f"in it: {found.layer}" if found.layer else f"no layer is named: {found.why_not}")


def _lost(value: float, unit: str) -> str:
    return formats.difference(-value, unit)


def _some(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{len(names)}: {names[0]} … {names[-1]}"


def layer_cells(one: LayerDifference) -> tuple[str, str, str, str]:
    """Name, place, what it adds, and the signal-to-noise ratio of what it makes."""
    decibels = (
        "exact" if one.error == 0 else formats.DASH if one.error is None else _decibels(one.snr_db)
    )
    return (
        one.layer,
        str(one.order),
        formats.DASH if one.added is None else _share(one.added),
        decibels,
    )


def _share(error: float) -> str:
    return "0" if error == 0 else f"{error:.2e}"


def _decibels(value: float | None) -> str:
    return formats.DASH if value is None else f"{value:.1f} dB"


def _shape(shape: tuple[int, ...] | None) -> str:
    return formats.DASH if shape is None else str(list(shape))
