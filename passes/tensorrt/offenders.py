"""Reasons for which a graph cannot be built, of graphs planned or on disk; no onnx."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from compressor.errors import RequirementError
from compressor.graphs.opsets import BLOCKS_OPSET
from compressor.models.capabilities.signature import InputSpec
from compressor.models.facts import Integers
from compressor.runtimes.tensorrt.profiles import Profile, missing_profiles
from passes.common.field_problems import is_set
from passes.tensorrt.config import TensorRTConfig

SIGNED_INTEGERS = (
    "quantize with signed integers: `symmetric: true` and `format: compressed-tensors` in an `awq` "
    "step, `target: tensorrt` in a `qat` or `optimize-onnx` step on the float model"
)
"""Remedy for unsigned integers, which TensorRT refuses."""


@dataclass(frozen=True, slots=True)
class Offender:
    """One reason for which the graph cannot be built."""

    text: str
    remedy: str | None = None


def precision_offenders(
    config: TensorRTConfig, integers: Integers, opset: int
) -> Iterator[Offender]:
    """Yield where precision and block size do not fit the types of the graph."""
    subject = f"precision {config.precision}"
    if config.precision in {"fp32", "fp16"} and integers:
        stored = "int4" if "int4" in integers else "int8"
        text = f"{subject}: the graph holds integers; set `precision: {stored}`"
        yield Offender(text, "set the precision of the graph, or build from the float graph")
    if config.precision == "int8" and "int8" not in integers:
        text = f"{subject}: the graph holds no INT8 integers"
        yield Offender(
            text,
            "set `precision: fp16`, or `int4`, which rounds the weights here; integers come from "
            "an `optimize-onnx` step with `target: tensorrt` before this one, or a `qat` step with "
            "it before `export-onnx`",
        )
    if config.precision != "int4":
        return
    if "int4" in integers and is_set(config, "block_size"):
        text = "`block_size` has no effect: the weights of the graph are in INT4 blocks already"
        yield Offender(text, "leave `block_size` out")
    if "int8" in integers and "int4" not in integers:
        text = f"{subject}: the graph holds INT8 integers; set `precision: int8`"
        yield Offender(text, "set the precision of the graph, or build from the float graph")
    elif "int4" not in integers and opset < BLOCKS_OPSET:
        text = f"{subject}: the graph has opset {opset}, and INT4 needs opset {BLOCKS_OPSET}"
        yield Offender(text, f"export the graph with `opset: {BLOCKS_OPSET}`")


def missing_profile_offenders(
    inputs: Sequence[InputSpec], profiles: Mapping[str, Profile]
) -> list[Offender]:
    """Return the dynamic inputs without a profile."""
    remedy = "set the shapes of the input: `profiles: {<input>: {min: […], opt: […], max: […]}}`"
    return [Offender(line, remedy) for line in missing_profiles(inputs, profiles)]


def check_no_offenders(offenders: Sequence[Offender], targets: Sequence[str]) -> None:
    """Check that there are no offenders.

    Raises:
        RequirementError: there are; the message names all of them with their remedies.
    """
    if not offenders:
        return
    remedies = dict.fromkeys(offender.remedy for offender in offenders if offender.remedy)
    raise RequirementError(
        f"TensorRT cannot build this graph for {', '.join(targets) or 'the GPU of a bundle'}:\n"
        + "\n".join(f"    {offender.text}" for offender in offenders),
        remedy="; ".join(remedies)
        or "a `qat` or `optimize-onnx` step with `target: tensorrt`, or `precision: fp16` with a "
        "float graph, gives graphs that TensorRT takes",
    )
