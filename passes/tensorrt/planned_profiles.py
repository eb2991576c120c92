"""Check of the profiles while planning, against the inputs of the planned graph."""

from __future__ import annotations

from compressor.graphs.decoder.interface import ATTENTION_MASK, INPUT_IDS, PAST_PREFIX
from compressor.models.capabilities.cached_generation import CachedGeneration
from compressor.models.capabilities.signature import InputSpec, Signature
from compressor.models.facts import ModelFacts
from compressor.runtimes.tensorrt.profiles import expand_profiles, profile_problems
from passes.common.field_problems import FieldProblem, check_no_problems
from passes.tensorrt.config import TensorRTConfig


def check_planned_profiles(config: TensorRTConfig, parent: ModelFacts) -> None:
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
