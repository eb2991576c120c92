"""Checks of the graph before the build: TensorRT's rules, and fields that do not fit the graph."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from onnxscript import ir

from compressor.data.contract import Batch
from compressor.engine.contract import PassContext
from compressor.errors import ModelError
from compressor.graphs.default_inputs import freeze_default_inputs
from compressor.graphs.files import load_typed_model
from compressor.graphs.lint.problem import Problem, Rule
from compressor.graphs.lint.targets import lint
from compressor.graphs.saving import exceeds_protobuf
from compressor.models.facts import Integers
from compressor.runtimes.tensorrt.profiles import (
    expand_profiles,
    profile_problems,
)
from passes.common.graph_samples import graph_inputs, load_feeds
from passes.tensorrt.config import TensorRTConfig
from passes.tensorrt.graph import (
    byte_arithmetic,
    cast_byte_inputs,
    count_integers,
)
from passes.tensorrt.offenders import (
    SIGNED_INTEGERS,
    Offender,
    check_no_offenders,
    missing_profile_offenders,
    precision_offenders,
)
from passes.tensorrt.select_backend import targets_on_this_machine


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
        *precision_offenders(config, _integers(graph), graph.opset_imports[""]),
        *_graph_offenders(config, graph),
        *_lint_offenders(config, graph, linted_targets),
    ]
    try:
        offenders += _profile_offenders(config, graph, model, replace(context, note=_no_note))
    except ModelError:  # ONNX Runtime opens the graph to find out how many samples a call takes
        if not offenders:
            raise
    check_no_offenders(offenders, targets)


def _no_note(text: str) -> None:
    """Drop what the step notes when it runs."""


def check_converted_graph(config: TensorRTConfig, graph: ir.Model, targets: Sequence[str]) -> None:
    """Check a graph in its final types against TensorRT's rules.

    Raises:
        RequirementError: TensorRT refuses nodes, or a target has no kernels for them.
    """
    check_no_offenders(list(_lint_offenders(config, graph, targets)), targets)


def _profile_offenders(
    config: TensorRTConfig, graph: ir.Model, model: Path, context: PassContext
) -> list[Offender]:
    """Return where profiles are missing, or do not fit the inputs or the samples."""
    inputs = graph_inputs(graph)
    profiles = expand_profiles(config.profiles, inputs)
    batches: list[Batch] = [{}]
    if config.calibration is not None:
        batches = load_feeds(config.calibration, inputs, context, model)
    shapes = [{name: array.shape for name, array in feeds.items()} for feeds in batches]
    problems = [line for batch in shapes for line in profile_problems(inputs, profiles, batch)]
    missing = missing_profile_offenders(inputs, profiles)
    return missing + [Offender(line) for line in dict.fromkeys(problems)]


def _graph_offenders(config: TensorRTConfig, graph: ir.Model) -> list[Offender]:
    """Return arithmetic on UINT8 inputs, and a graph that is too large for FP16."""
    offenders = [Offender(line) for line in byte_arithmetic(graph)]
    if config.float_type == "fp16" and exceeds_protobuf(graph):
        text = "floats fp16: graphs of more than 2 GB cannot be converted to FP16"
        offenders.append(Offender(text, "set `floats: fp32`"))
    return offenders


def _lint_offenders(
    config: TensorRTConfig, graph: ir.Model, targets: Sequence[str]
) -> Iterator[Offender]:
    for problem in lint(ir.to_proto(graph), "tensorrt", targets):
        if problem.rule is Rule.BRANCHES:  # a profile of one size may decide the condition
            continue
        yield Offender(str(problem), _lint_remedy(config, problem))


def _lint_remedy(config: TensorRTConfig, problem: Problem) -> str | None:
    if problem.rule is Rule.UNSIGNED_INTEGERS:
        return SIGNED_INTEGERS
    if problem.rule is Rule.FP32_PRODUCTS and config.float_type == "fp32":
        return "compute the products in FP16: `precision: fp16`, or `floats: fp16`"
    if problem.rule is Rule.FP32_PRODUCTS:
        return "leave the target out: the products exceed `data_max`, and so stay in FP32"
    return None


def _integers(graph: ir.Model) -> Integers:
    counts = count_integers(graph)
    int8: Integers = frozenset({"int8"} if counts.int8 else ())
    return int8 | ({"int4"} if counts.int4 else set())
