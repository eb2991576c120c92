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
from compressor.graphs.files import load_typed_model
from compressor.graphs.saving import exceeds_protobuf, save_model
from compressor.runtimes.formats import open_session
from compressor.runtimes.onnxruntime.integer_kernels import integer_products_saturate
from compressor.runtimes.onnxruntime.observation import open_graph, run_graph
from compressor.runtimes.session import match_inputs
from compressor.runtimes.working_inputs import working_inputs
from passes.common.graph_comparison import OutputDifference, compare_graphs, compare_runs
from passes.optimize_onnx.config import OptimizeOnnxConfig, Precision
from passes.optimize_onnx.prepare import is_half, prepare_graph

_MOST_BATCHES = 4
"""Batches on which a prepared graph is compared."""
_ROUNDING = 1e-3
"""Relative error of outputs that are sums of the same terms in another order."""
_HALF_ROUNDING = 0.05
"""Relative error of a parent that rounds every value to FP16."""
_NOISE_FACTOR = 10
"""Largest error, in those of the parent itself computed in another order."""
_FAR: Mapping[Precision, float] = {"fp16": 0.05, "int8": 0.3, "int4": 0.5}
"""Relative error of an output from which a conversion is hardly of use."""
_FAR_REMEDIES: Mapping[Precision, str] = {
    "fp16": "a lower `data_max` keeps more of the graph in FP32",
    "int8": "`keep_float` keeps the most sensitive products in float",
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
        feeds: batches of samples; random inputs are made where there are none.
        context: threads, and notes for the user.

    Raises:
        ParityError: outputs differ by more than rounding explains.
    """
    feeds = list(feeds[:_MOST_BATCHES]) or _random_feeds(parent, context)
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
    """Return the remedy that was tried: without simplification, or else another export."""
    if config.simplify:
        plain = prepare_graph(config.model_copy(update={"simplify": False}), parent, lambda _: None)
        if not _unequal_outputs(parent, plain, feeds, context):
            return "set `simplify: false`, with which it does"
    return "export the model again, in opset 21 or newer and in FP32, which needs no upgrade"


def _random_feeds(parent: Path, context: PassContext) -> list[Batch]:
    with open_session("onnx", parent, threads=context.threads) as session:
        feeds = working_inputs(session)
    return [] if feeds is None else [feeds]


def _unequal_outputs(
    parent: Path, graph: ir.Model, feeds: Sequence[Batch], context: PassContext
) -> dict[str, OutputDifference]:
    """Return the outputs that differ by more than rounding explains."""
    tolerance = _HALF_ROUNDING if is_half(parent) else _ROUNDING
    with TemporaryDirectory(dir=_existing(context.work)) as folder:
        save_model(graph, Path(folder), external=exceeds_protobuf(graph))
        differences = compare_graphs(parent, Path(folder), feeds, context.threads)
    unequal = {name: each for name, each in differences.items() if not _is_equal(each, tolerance)}
    if not unequal:
        return {}
    # Where a choice hangs on rounding, as of boxes, the parent differs from itself.
    noise = _noise(parent, feeds, context.threads)
    return {
        name: each
        for name, each in unequal.items()
        if each.relative_error > _NOISE_FACTOR * noise[name].relative_error
        or each.other_shapes > _NOISE_FACTOR * noise[name].other_shapes
    }


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
    plain = open_graph(load_typed_model(parent), threads, optimize=False)
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


def _exact_error(parent: Path, out: Path, feeds: Sequence[Batch], context: PassContext) -> str:
    """Return the relative error of each output where integer products do not saturate."""
    exact = open_graph(load_typed_model(out), context.threads)
    differences = _differences(parent, exact, feeds, context.threads)
    return ", ".join(f"{each.relative_error:.2g} in {name}" for name, each in differences.items())


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
        remedy = (
            f"set `data_max: {config.data_max / 16:.0f}`, which keeps more of the graph in FP32"
            if config.precision == "fp16"
            else "set `precision: fp16`"
        )
        raise NumericalError(f"{error.what}, and its parent does not", remedy=remedy) from error
    is_integer = config.precision == "int8" and config.target == "onnxruntime"
    if is_integer and integer_products_saturate():
        exact = _exact_error(parent, out, feeds, context)
        context.note(
            "this processor lacks VNNI, so ONNX Runtime saturates large sums of integer products: "
            f"the error here includes that; without, it is {exact}"
        )
    limit = _FAR.get(config.precision, 1.0)
    far = [
        f"{name} ({each.describe()})"
        for name, each in differences.items()
        if each.relative_error > limit
    ]
    if far:
        context.note(f"far from the parent: {', '.join(far)}; {_FAR_REMEDIES[config.precision]}")
    return differences
