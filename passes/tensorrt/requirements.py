"""Checks before the build: fields against the model, and the graph against TensorRT's rules."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from compressor.errors import RequirementError
from compressor.models.capabilities.cached_generation import CachedGeneration
from compressor.models.capabilities.signature import InputSpec, Signature
from compressor.models.facts import ModelFacts
from compressor.runtimes.tensorrt.profiles import (
    expand_profiles,
    missing_profiles,
    profile_problems,
)
from passes.common.field_problems import FieldProblem, check_no_problems, is_set
from passes.tensorrt.config import TensorRTConfig

if TYPE_CHECKING:
    from onnxscript import ir

    from compressor.engine.contract import PassContext
    from compressor.graphs.lint.problem import Problem


@dataclass(frozen=True, slots=True)
class _Offence:
    """One line of a refusal."""

    text: str
    remedy: str | None = None


def check_fields(config: TensorRTConfig, parent: ModelFacts) -> None:
    """Check the profiles against the inputs of the parent, as far as the plan knows them.

    Raises:
        RequirementError: a profile belongs to no input, or does not fit it; all are named.
    """
    inputs = _planned_inputs(parent)
    if inputs is None:
        return
    remedy = "name the model's inputs, and shapes that they can have"
    problems = profile_problems(inputs, expand_profiles(config.profiles, inputs))
    check_no_problems(FieldProblem("profiles", problem, remedy) for problem in problems)


def _planned_inputs(parent: ModelFacts) -> tuple[InputSpec, ...] | None:
    """Return the inputs that ``export-onnx`` gives the model's graph; None if they are unknown.

    The inputs of a decoder that have a default are left out: they become constants of an engine.
    """
    from compressor.graphs.decoder.interface import ATTENTION_MASK, INPUT_IDS, PAST_PREFIX

    signature = parent.capability(Signature)
    cache = parent.capability(CachedGeneration)
    if signature is None or cache is None:
        return None if signature is None else signature.inputs
    past_shape = ("batch", cache.key_heads, "past", cache.head_width)
    return (
        InputSpec(INPUT_IDS, "int64", ("batch", "tokens")),
        InputSpec(ATTENTION_MASK, "int64", ("batch", "total")),
        *(
            InputSpec(f"{PAST_PREFIX}{layer}.{part}", "float32", past_shape)
            for layer in range(cache.layers)
            for part in ("key", "value")
        ),
    )


def check_graph(config: TensorRTConfig, model: Path, context: PassContext) -> None:
    """Check everything that can be refused before the graph is converted.

    Raises:
        GpuError: the backend needs a GPU that this machine lacks.
        RequirementError: the graph, the precision or the profiles do not fit; all offenders are
            named.
        DataError: the samples do not fit the graph.
    """
    from compressor.graphs.files import load_typed_model
    from passes.tensorrt.graph import cast_byte_inputs, freeze_default_inputs
    from passes.tensorrt.select_backend import targets_on_this_machine

    targets = targets_on_this_machine(config)
    graph = load_typed_model(model)
    freeze_default_inputs(graph)
    cast_byte_inputs(graph)
    # The nodes that stay in FP32 in a graph in FP16 are not known yet.
    linted_targets = targets if config.float_type == "fp32" else ()
    offences = [
        *_precision_offences(config, graph),
        *_profile_offences(config, graph, context),
        *_graph_offences(config, graph),
        *_lint_offences(config, graph, linted_targets),
    ]
    _refuse(offences, targets)


def check_converted_graph(config: TensorRTConfig, graph: ir.Model, targets: Sequence[str]) -> None:
    """Check a graph in its final types against TensorRT's rules.

    Raises:
        RequirementError: TensorRT refuses nodes, or a target has no kernels for them.
    """
    _refuse(list(_lint_offences(config, graph, targets)), targets)


def _precision_offences(config: TensorRTConfig, graph: ir.Model) -> list[_Offence]:
    """Return where the precision does not match the types of the graph."""
    from compressor.graphs.blocks import BLOCKS_OPSET
    from passes.tensorrt.graph import count_integers

    integers, opset = count_integers(graph), graph.opset_imports[""]
    subject = f"precision {config.precision}"
    if config.precision in {"fp32", "fp16"} and (integers.int8 or integers.int4):
        stored = "int4" if integers.int4 else "int8"
        text = f"{subject}: the graph holds integers; set `precision: {stored}`"
    elif config.precision == "int8" and not integers.int8:
        text = f"{subject}: the graph holds no INT8 integers"
    elif config.precision == "int4" and integers.int4 and is_set(config, "block_size"):
        text = "`block_size` has no effect: the weights of the graph are in INT4 blocks already"
    elif config.precision != "int4" or integers.int4:
        return []
    elif integers.int8:
        text = f"{subject}: the graph holds INT8 integers; set `precision: int8`"
    elif opset < BLOCKS_OPSET:
        text = f"{subject}: the graph has opset {opset}, and INT4 needs opset {BLOCKS_OPSET}"
    else:
        return []
    return [_Offence(text, _PRECISION_REMEDY)]


_PRECISION_REMEDY = (
    "set the precision of the graph; or quantize it: a `qat` step with `target: tensorrt` for "
    "INT8, an export with `opset: 21` for INT4"
)


def _profile_offences(
    config: TensorRTConfig, graph: ir.Model, context: PassContext
) -> list[_Offence]:
    """Return where profiles are missing, or do not fit the inputs or the samples."""
    from passes.tensorrt.graph import graph_inputs
    from passes.tensorrt.smoke_test import load_feeds

    inputs = graph_inputs(graph)
    profiles = expand_profiles(config.profiles, inputs)
    batches = (
        [{}] if config.calibration is None else load_feeds(config.calibration, inputs, context)
    )
    shapes = [{name: array.shape for name, array in feeds.items()} for feeds in batches]
    problems = [line for batch in shapes for line in profile_problems(inputs, profiles, batch)]
    remedy = "set the shapes of the input: `profiles: {<input>: {min: […], opt: […], max: […]}}`"
    missing = [_Offence(line, remedy) for line in missing_profiles(inputs, profiles)]
    return missing + [_Offence(line) for line in dict.fromkeys(problems)]


def _graph_offences(config: TensorRTConfig, graph: ir.Model) -> list[_Offence]:
    """Return arithmetic on UINT8 inputs, and a graph that is too large for FP16."""
    from passes.tensorrt.graph import byte_arithmetic, exceeds_protobuf

    offences = [_Offence(line) for line in byte_arithmetic(graph)]
    if config.float_type == "fp16" and exceeds_protobuf(graph):
        text = "floats fp16: graphs of more than 2 GB cannot be converted to FP16"
        offences.append(_Offence(text, "set `floats: fp32`"))
    return offences


def _lint_offences(
    config: TensorRTConfig, graph: ir.Model, targets: Sequence[str]
) -> Iterable[_Offence]:
    from onnxscript import ir

    from compressor.graphs.lint.targets import lint

    for problem in lint(ir.to_proto(graph), "tensorrt", targets):
        yield _Offence(str(problem), _lint_remedy(config, problem))


def _lint_remedy(config: TensorRTConfig, problem: Problem) -> str | None:
    from compressor.graphs.lint.problem import Rule

    if problem.rule is Rule.UNSIGNED_INTEGERS:
        return (
            "quantize with signed integers: `symmetric: true` and `format: compressed-tensors` in "
            "an `awq` step, `target: tensorrt` in a `qat` step"
        )
    if problem.rule is Rule.FP32_PRODUCTS and config.float_type == "fp32":
        return "compute the products in FP16: `precision: fp16`, or `floats: fp16`"
    if problem.rule is Rule.FP32_PRODUCTS:
        return "raise `data_max`, which keeps the products in FP32, or leave the target out"
    return None


def _refuse(offences: Sequence[_Offence], targets: Sequence[str]) -> None:
    """Raise a RequirementError that names all offences with their remedies, if there are any."""
    if not offences:
        return
    remedies = dict.fromkeys(offence.remedy for offence in offences if offence.remedy)
    raise RequirementError(
        f"TensorRT cannot build this graph for {', '.join(targets) or 'the GPU of a bundle'}:\n"
        + "\n".join(f"    {offence.text}" for offence in offences),
        remedy="; ".join(remedies)
        or "a `qat` step with `target: tensorrt`, or `precision: fp16` with a float graph, gives "
        "graphs that TensorRT takes",
    )
