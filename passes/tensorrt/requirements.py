"""Checks of the graph before the build: TensorRT's rules, and fields that do not fit the graph."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from onnxscript import ir

from compressor.engine.contract import PassContext
from compressor.errors import RequirementError
from compressor.graphs.blocks import BLOCKS_OPSET
from compressor.graphs.files import load_typed_model
from compressor.graphs.lint.problem import Problem, Rule
from compressor.graphs.lint.targets import lint
from compressor.runtimes.tensorrt.profiles import (
    expand_profiles,
    missing_profiles,
    profile_problems,
)
from passes.common.field_problems import is_set
from passes.tensorrt.config import TensorRTConfig
from passes.tensorrt.graph import (
    byte_arithmetic,
    cast_byte_inputs,
    count_integers,
    exceeds_protobuf,
    freeze_default_inputs,
    graph_inputs,
)
from passes.tensorrt.select_backend import targets_on_this_machine
from passes.tensorrt.smoke_test import load_feeds


@dataclass(frozen=True, slots=True)
class _Offender:
    """One reason for which the graph cannot be built."""

    text: str
    remedy: str | None = None


def check_graph(config: TensorRTConfig, model: Path, context: PassContext) -> None:
    """Check everything that can be refused before the graph is converted.

    Raises:
        GpuError: the backend needs a GPU that this machine lacks.
        RequirementError: the graph, the precision or the profiles do not fit; all offenders are
            named.
        DataError: the samples do not fit the graph.
    """
    targets = targets_on_this_machine(config)
    graph = load_typed_model(model)
    freeze_default_inputs(graph)
    cast_byte_inputs(graph)
    # The nodes that stay in FP32 in a graph in FP16 are not known yet.
    linted_targets = targets if config.float_type == "fp32" else ()
    offenders = [
        *_precision_offenders(config, graph),
        *_profile_offenders(config, graph, context),
        *_graph_offenders(config, graph),
        *_lint_offenders(config, graph, linted_targets),
    ]
    _refuse(offenders, targets)


def check_converted_graph(config: TensorRTConfig, graph: ir.Model, targets: Sequence[str]) -> None:
    """Check a graph in its final types against TensorRT's rules.

    Raises:
        RequirementError: TensorRT refuses nodes, or a target has no kernels for them.
    """
    _refuse(list(_lint_offenders(config, graph, targets)), targets)


def _precision_offenders(config: TensorRTConfig, graph: ir.Model) -> Iterator[_Offender]:
    """Yield where precision and block size do not fit the types of the graph."""
    integers, opset = count_integers(graph), graph.opset_imports[""]
    subject = f"precision {config.precision}"
    if config.precision in {"fp32", "fp16"} and (integers.int8 or integers.int4):
        stored = "int4" if integers.int4 else "int8"
        text = f"{subject}: the graph holds integers; set `precision: {stored}`"
        yield _Offender(text, "set the precision of the graph, or build from the float graph")
    if config.precision == "int8" and not integers.int8:
        text = f"{subject}: the graph holds no INT8 integers"
        yield _Offender(text, "quantize the model with a `qat` step with `target: tensorrt`")
    if config.precision != "int4":
        return
    if integers.int4 and is_set(config, "block_size"):
        text = "`block_size` has no effect: the weights of the graph are in INT4 blocks already"
        yield _Offender(text, "leave `block_size` out")
    if integers.int8 and not integers.int4:
        text = f"{subject}: the graph holds INT8 integers; set `precision: int8`"
        yield _Offender(text, "set the precision of the graph, or build from the float graph")
    elif not integers.int4 and opset < BLOCKS_OPSET:
        text = f"{subject}: the graph has opset {opset}, and INT4 needs opset {BLOCKS_OPSET}"
        yield _Offender(text, f"export the graph with `opset: {BLOCKS_OPSET}`")


def _profile_offenders(
    config: TensorRTConfig, graph: ir.Model, context: PassContext
) -> list[_Offender]:
    """Return where profiles are missing, or do not fit the inputs or the samples."""
    inputs = graph_inputs(graph)
    profiles = expand_profiles(config.profiles, inputs)
    batches = (
        [{}] if config.calibration is None else load_feeds(config.calibration, inputs, context)
    )
    shapes = [{name: array.shape for name, array in feeds.items()} for feeds in batches]
    problems = [line for batch in shapes for line in profile_problems(inputs, profiles, batch)]
    remedy = "set the shapes of the input: `profiles: {<input>: {min: […], opt: […], max: […]}}`"
    missing = [_Offender(line, remedy) for line in missing_profiles(inputs, profiles)]
    return missing + [_Offender(line) for line in dict.fromkeys(problems)]


def _graph_offenders(config: TensorRTConfig, graph: ir.Model) -> list[_Offender]:
    """Return arithmetic on UINT8 inputs, and a graph that is too large for FP16."""
    offenders = [_Offender(line) for line in byte_arithmetic(graph)]
    if config.float_type == "fp16" and exceeds_protobuf(graph):
        text = "floats fp16: graphs of more than 2 GB cannot be converted to FP16"
        offenders.append(_Offender(text, "set `floats: fp32`"))
    return offenders


def _lint_offenders(
    config: TensorRTConfig, graph: ir.Model, targets: Sequence[str]
) -> Iterator[_Offender]:
    for problem in lint(ir.to_proto(graph), "tensorrt", targets):
        yield _Offender(str(problem), _lint_remedy(config, problem))


def _lint_remedy(config: TensorRTConfig, problem: Problem) -> str | None:
    if problem.rule is Rule.UNSIGNED_INTEGERS:
        return (
            "quantize with signed integers: `symmetric: true` and `format: compressed-tensors` in "
            "an `awq` step, `target: tensorrt` in a `qat` step"
        )
    if problem.rule is Rule.FP32_PRODUCTS and config.float_type == "fp32":
        return "compute the products in FP16: `precision: fp16`, or `floats: fp16`"
    if problem.rule is Rule.FP32_PRODUCTS:
        return "leave the target out: the products exceed `data_max`, and so stay in FP32"
    return None


def _refuse(offenders: Sequence[_Offender], targets: Sequence[str]) -> None:
    """Raise a RequirementError that names all offenders with their remedies, if there are any."""
    if not offenders:
        return
    remedies = dict.fromkeys(offender.remedy for offender in offenders if offender.remedy)
    raise RequirementError(
        f"TensorRT cannot build this graph for {', '.join(targets) or 'the GPU of a bundle'}:\n"
        + "\n".join(f"    {offender.text}" for offender in offenders),
        remedy="; ".join(remedies)
        or "a `qat` step with `target: tensorrt`, or `precision: fp16` with a float graph, gives "
        "graphs that TensorRT takes",
    )
