"""Check of a planned graph: its integers and operators, and the profiles of its inputs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from compressor.graphs.decoder.interface import ATTENTION_MASK, INPUT_IDS, PAST_PREFIX
from compressor.models.capabilities.cached_generation import CachedGeneration
from compressor.models.capabilities.signature import InputSpec, Signature
from compressor.models.facts import ModelFacts, PlannedGraph
from compressor.runtimes.tensorrt.profiles import expand_profiles, profile_problems
from passes.tensorrt.config import TensorRTConfig
from passes.tensorrt.offenders import (
    SIGNED_INTEGERS,
    Offender,
    check_no_offenders,
    missing_profile_offenders,
    precision_offenders,
)

_CLASSICAL = "ai.onnx.ml"
"""Domain of the operators of classical models."""


def check_planned_graph(config: TensorRTConfig, parent: ModelFacts) -> None:
    """Check everything that the plan knows about the graph.

    Raises:
        RequirementError: TensorRT refuses the graph, or fields do not fit it; all are named.
    """
    offenders = list(_domain_offenders(parent))
    if parent.graph is not None:
        offenders += _graph_offenders(config, parent.graph)
    check_no_offenders([*offenders, *_profile_offenders(config, parent)], config.targets)


def _domain_offenders(parent: ModelFacts) -> Iterator[Offender]:
    """Yield the operators of classical models, such as trees, which TensorRT does not have."""
    contents = None if parent.graph_contents is None else parent.graph_contents()
    operators = {} if contents is None else (contents.domains or {}).get(_CLASSICAL, {})
    if operators:
        listed = ", ".join(f"{count} {name}" for name, count in sorted(operators.items()))
        yield Offender(
            f"the graph has operators of {_CLASSICAL}, which TensorRT does not have: {listed}",
            "leave this step out: ONNX Runtime executes them, `export-ort` writes its own format",
        )


def _graph_offenders(config: TensorRTConfig, graph: PlannedGraph) -> Iterator[Offender]:
    if not graph.is_standard:
        text = "the graph has operators of ONNX Runtime's own, which TensorRT does not have"
        yield Offender(text, "export the graph with `decoder: {target: portable}`")
    elif graph.integers is not None and "unsigned" in graph.integers:
        yield Offender("the graph holds unsigned integers", SIGNED_INTEGERS)
    elif graph.integers is not None:
        yield from precision_offenders(config, graph.integers, graph.opset)


def _profile_offenders(config: TensorRTConfig, parent: ModelFacts) -> list[Offender]:
    """Return where profiles are missing or do not fit the inputs; none where these are unknown."""
    inputs = _planned_inputs(parent)
    if inputs is None:
        return []
    profiles = expand_profiles(config.profiles, inputs)
    remedy = "name the model's inputs, and shapes that they can have"
    problems = [Offender(line, remedy) for line in profile_problems(inputs, profiles)]
    graph, varying = parent.graph, inputs
    if graph is None and parent.graph_inputs is None:
        return problems
    if graph is not None:
        varying = tuple(replace(spec, shape=_varying_shape(spec, graph)) for spec in inputs)
    return [*problems, *missing_profile_offenders(varying, profiles)]


def _varying_shape(spec: InputSpec, graph: PlannedGraph) -> tuple[int | str, ...]:
    """Return a shape in which dimensions that do not vary are numbers."""
    return tuple(
        size if isinstance(size, int) or graph.dynamic is None or size in graph.dynamic else 1
        for size in spec.shape
    )


def _planned_inputs(parent: ModelFacts) -> tuple[InputSpec, ...] | None:
    """Return the inputs of the model's graph, or those of ``export-onnx``; None if unknown.

    Inputs that have a default are left out: they become constants of an engine.
    """
    if parent.graph_inputs is not None:
        return parent.graph_inputs()
    signature = parent.capability(Signature)
    cache = parent.capability(CachedGeneration)
    if signature is None or cache is None:
        return None if signature is None else signature.required_inputs
    if not parent.sizes_known:  # pruning may have removed layers or key heads
        return None
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
