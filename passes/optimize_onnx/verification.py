"""Checks that graphs compute what their parent does: the prepared one, and the converted one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from onnxruntime import InferenceSession
from onnxscript import ir

from compressor.data.contract import Batch
from compressor.engine.contract import PassContext
from compressor.errors import NumericalError, ParityError
from compressor.graphs.files import MODEL, read_graph
from compressor.graphs.graph_index import GraphIndex
from compressor.graphs.saving import exceeds_protobuf, save_model
from compressor.runtimes.formats import open_session
from compressor.runtimes.onnxruntime.integer_kernels import (
    SATURATING_PRODUCTS,
    integer_products_saturate,
)
from compressor.runtimes.onnxruntime.observation import open_file, run_graph
from compressor.runtimes.onnxruntime.session import EXACT_RUNTIME, OnnxSession
from compressor.runtimes.session import match_inputs
from compressor.runtimes.working_inputs import working_inputs
from passes.common.graph_comparison import OutputDifference, compare_graphs, compare_runs
from passes.optimize_onnx.config import OptimizeOnnxConfig, Precision
from passes.optimize_onnx.planned import OPSETS
from passes.optimize_onnx.prepare import computes_halves, prepare_graph

_MOST_BATCHES = 4
"""Batches on which a prepared graph is compared."""
_ROUNDING = 1e-3
"""Relative error of outputs that are sums of the same terms in another order."""
_HALF_ROUNDING = 0.05
"""Relative error of a parent that rounds every value to FP16."""
_HALF_STEPS = 4 * 2.0**-24
"""A few of the smallest steps of FP16: outputs of that size hold no digits."""
_LEAVE_OUT = "leave this step out: the graph cannot be simplified"
_NOISE_FACTOR = 10
"""Largest error, in those of the parent itself computed in another order."""
_RANDOM = frozenset(
    {
        "RandomNormal",
        "RandomNormalLike",
        "RandomUniform",
        "RandomUniformLike",
        "Multinomial",
        "Bernoulli",
    }
)
_FAR: Mapping[Precision, float] = {"fp16": 0.05, "int8": 0.3, "int4": 0.5}
"""Relative error of an output from which a conversion is hardly of use."""
_FAR_REMEDIES: Mapping[Precision, str] = {
    "fp16": "a lower `data_max` keeps more of the graph in FP32",
    "int8": "`keep_float` keeps the most sensitive products in float, and `weight_only: true` "
    "rounds weights alone",
    "int4": "a smaller `block_size`, `calibration`, or `precision: int8` is closer",
}


def check_prepared(
    config: OptimizeOnnxConfig,
    parent: Path,
    graph: ir.Model,
    feeds: Sequence[Batch],
    context: PassContext,
) -> None:
    """Check that a prepared graph computes what its parent does, up to rounding.

    Args:
        config: the config.
        parent: folder of the parent's graph.
        graph: the prepared graph.
        feeds: batches of samples, or random inputs; empty if the parent runs on none.
        context: threads, and notes for the user.

    Raises:
        ParityError: outputs differ by more than rounding explains.
    """
    feeds = feeds[:_MOST_BATCHES]
    if not feeds:
        context.note(
            "not compared with the graph as it was: it runs on no random inputs that were tried, "
            "and there is no `calibration`"
        )
        return
    unequal = _unequal_outputs(parent, graph, feeds, context)
    if not unequal:
        return
    listed = ", ".join(
        f"{name} ({difference.describe()})" for name, difference in sorted(unequal.items())
    )
    step = "simplified" if config.simplify else "prepared"
    raise ParityError(
        f"the {step} graph does not compute what its parent does: {listed}",
        remedy=_remedy(config, parent, feeds, context),
    )


def _remedy(
    config: OptimizeOnnxConfig,
    parent: Path,
    feeds: Sequence[Batch],
    context: PassContext,
) -> str:
    """Return the remedy: no simplification where that was tried with success, or another export."""
    if config.simplify:
        plain = prepare_graph(config.model_copy(update={"simplify": False}), parent, lambda _: None)
        if not _unequal_outputs(parent, plain, feeds, context):
            if config.precision == "fp32":  # without simplification, it changes nothing
                return _LEAVE_OUT
            return "set `simplify: false`, with which it does"
    causes = ["in FP32"] if computes_halves(parent) else []
    causes += ["in opset 21 or newer, which needs no upgrade"] if config.precision in OPSETS else []
    if not causes:
        return "this is a defect of the program that prepares the graph: please report it"
    return f"export the model again, {' and '.join(causes)}"


def random_feeds(parent: Path, context: PassContext) -> list[Batch]:
    """Return random inputs of a graph in one batch; none if it runs on none that were tried."""
    with open_session("onnx", parent, threads=context.threads) as session:
        feeds = working_inputs(session)
    return [] if feeds is None else [feeds]


def _unequal_outputs(
    parent: Path, graph: ir.Model, feeds: Sequence[Batch], context: PassContext
) -> dict[str, OutputDifference]:
    """Return the outputs that differ by more than rounding explains."""
    tolerance, step = (_HALF_ROUNDING, _HALF_STEPS) if computes_halves(parent) else (_ROUNDING, 0.0)
    with TemporaryDirectory(dir=_existing(context.work)) as folder:
        save_model(graph, Path(folder), external=exceeds_protobuf(graph))
        differences = compare_graphs(parent, Path(folder), feeds, context.threads)
    unequal = {
        name: each
        for name, each in differences.items()
        if not _is_equal(each, tolerance) and (each.other_shapes or each.max_abs > step)
    }
    if not unequal:
        return {}
    # Where a choice hangs on rounding, as of boxes, the parent differs from itself.
    noise = _noise(parent, feeds, context.threads)
    return {name: each for name, each in unequal.items() if _exceeds(each, noise[name])}


def _exceeds(difference: OutputDifference, noise: OutputDifference) -> bool:
    """Return True if a difference is larger than a graph's from itself explains."""
    return (
        difference.relative_error > _NOISE_FACTOR * noise.relative_error
        or difference.other_shapes > _NOISE_FACTOR * noise.other_shapes
        # Samples whose outputs were all 0 have no relative error.
        or (difference.cosine <= 0 and difference.max_abs > _NOISE_FACTOR * noise.max_abs)
    )


def _existing(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _is_equal(difference: OutputDifference, tolerance: float) -> bool:
    # A sample whose outputs were all 0 has no relative error, and a cosine of 0 if they are not.
    became_other = difference.cosine <= 0 and difference.max_abs > tolerance
    is_close = difference.relative_error <= tolerance
    return is_close and not became_other and not difference.other_shapes


def _noise(parent: Path, feeds: Sequence[Batch], threads: int) -> dict[str, OutputDifference]:
    """Return the difference of a graph from itself, with and without fused operators."""
    # From the file, since a graph that is read wrongly would pass for noise.
    plain = open_file(parent / MODEL, threads, optimize=False)
    return _differences(parent, plain, feeds, threads)


def _differences(
    parent: Path, session: InferenceSession, feeds: Sequence[Batch], threads: int
) -> dict[str, OutputDifference]:
    """Compare an open graph, whose inputs and outputs have the same names, with its parent."""
    with open_session("onnx", parent, threads=threads) as reference:
        names, specs = list(reference.output_names), reference.inputs
        known = {value.name for value in session.get_inputs()}

        def run(batch: Batch) -> Batch:
            complete = {**batch, **match_inputs(batch, specs)}
            inputs = {name: array for name, array in complete.items() if name in known}
            return dict(zip(names, run_graph(session, names, inputs), strict=True))

        return compare_runs(reference.run, run, feeds)


def _saturated_error(parent: Path, out: Path, feeds: Sequence[Batch], threads: int) -> str:
    """Return the relative error of each output with ONNX Runtime's default on this processor."""
    with (
        open_session("onnx", parent, threads=threads) as reference,
        OnnxSession(out, threads, "cpu", SATURATING_PRODUCTS) as session,
    ):
        differences = compare_runs(reference.run, session.run, feeds)
    return ", ".join(f"{each.relative_error:.2g} in {name}" for name, each in differences.items())


def _opens_exactly(out: Path, feeds: Batch, threads: int) -> bool:
    """Return True if ONNX Runtime executes a graph with products that do not saturate."""
    with OnnxSession(out, threads, "cpu") as session:
        session.run(feeds)
        return EXACT_RUNTIME in session.runtime


def _rounds_values(model: Path) -> bool:
    """Return True if a graph has products whose operands are both integers."""
    nodes = GraphIndex(read_graph(model)).nodes
    return any(node.op_type in {"QuantizeLinear", "DynamicQuantizeLSTM"} for node in nodes)


def _random_operators(parent: Path) -> list[str]:
    """Return the operators of a graph that draw random numbers."""
    nodes = GraphIndex(read_graph(parent)).nodes
    return sorted({node.op_type for node in nodes if node.op_type in _RANDOM and not node.domain})


def compare_with_parent(
    config: OptimizeOnnxConfig,
    parent: Path,
    out: Path,
    feeds: Sequence[Batch],
    context: PassContext,
) -> dict[str, OutputDifference]:
    """Return the difference of a converted graph from its parent, and note outputs that are far.

    Raises:
        NumericalError: the converted graph computes NaN or infinity where its parent does not.
    """
    try:
        differences = compare_graphs(parent, out, feeds, context.threads)
    except NumericalError as error:
        remedy = {
            "fp16": f"set `data_max: {config.data_max / 16:g}`, which keeps more of the graph in "
            "FP32",
            "fp32": _LEAVE_OUT,
        }.get(config.precision, "set `precision: fp32`, which only simplifies, to find the cause")
        raise NumericalError(f"{error.what}, and its parent does not", remedy=remedy) from error
    if (
        config.precision == "int8"
        and config.target == "onnxruntime"
        and _rounds_values(out)
        and integer_products_saturate()
    ):
        saturated = _saturated_error(parent, out, feeds, context.threads)
        measured = (
            "The graph is measured with `session.x64quantprecision=1`, which applications on such "
            "processors have to set"
            if _opens_exactly(out, feeds[0], context.threads)
            else "The graph is measured like that: ONNX Runtime does not execute it with "
            "`session.x64quantprecision=1`, as layers share a weight"
        )
        context.note(
            "this processor lacks VNNI, and by default ONNX Runtime saturates large sums of "
            f"integer products on it, with a relative error of {saturated}. {measured}"
        )
    if drawn := _random_operators(parent):
        context.note(
            f"outputs differ from call to call, and so from the parent, as {', '.join(drawn)} "
            "draw random numbers"
        )
        return differences
    limit = _FAR.get(config.precision, 1.0)
    far = [
        f"{name} ({each.describe()})"
        for name, each in differences.items()
        if each.relative_error > limit
    ]
    if far:
        context.note(f"far from the parent: {', '.join(far)}; {_FAR_REMEDIES[config.precision]}")
    return differences
