"""The whole pass: from an ONNX artifact's folder to an engine artifact's."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from onnxscript import ir

from compressor.artifacts.fingerprint import digest_file
from compressor.engine.contract import PassContext, PassOutput
from compressor.errors import NumericalError, RequirementError
from compressor.graphs.blocks import BLOCKS_OPSET, store_int4_weights
from compressor.graphs.files import PROTOBUF_LIMIT_BYTES, load_typed_model
from compressor.graphs.fp16 import convert_to_fp16, float_values
from compressor.graphs.fp16_block_list import BlockList, Cause
from compressor.graphs.lint.targets import lint
from compressor.graphs.saving import initializer_bytes
from compressor.runtimes.formats import open_session
from compressor.runtimes.onnxruntime.ranges import measure_magnitudes
from compressor.runtimes.tensorrt.backends import BACKENDS, chosen
from compressor.runtimes.tensorrt.manifest import (
    BUNDLE,
    ENGINE,
    BuildSettings,
    EngineFile,
    EngineManifest,
    read_verified_manifest,
    write_record,
)
from compressor.runtimes.tensorrt.profiles import expand_profiles, profile_problems
from compressor.runtimes.tensorrt.session import unavailable_reason
from passes.tensorrt import graph
from passes.tensorrt.bundle import bundle_of
from passes.tensorrt.compile import engine_from_onnx
from passes.tensorrt.compile_worker import Request
from passes.tensorrt.select_backend import targets_here
from passes.tensorrt.smoke_test import against_parent, batches_of, executed

if TYPE_CHECKING:
    from passes.tensorrt.step import TensorRTConfig

_REMEDIES = {
    "has no profile": "say which shapes an input will have: `profiles: {<input>: {min: […], opt: […], max: […]}}`",
    "FP32 products": "compute them in FP16: `precision: fp16`, or `floats: fp16`",
    "UINT4 integers": "pack a language model with `symmetric: true` (`format: compressed-tensors`)",
    "precision ": "say the precision that the graph is in, or quantize it",
}
"""What is said of a complaint to what helps."""
_STAGES = ("ranges", "compare", "build")


def check(config: TensorRTConfig, model: Path, context: PassContext) -> None:
    """Everything that can be refused before work is done.

    Raises:
        GpuError: a GPU is needed, and not there.
        RequirementError: the graph, the precision or the profiles do not fit: every offender is named.
        DataError: the samples do not fit the graph.
    """
    targets = targets_here(config)
    opened = load_typed_model(model)
    graph.fix_defaults(opened)
    graph.widen_bytes(opened)
    inputs = graph.inputs_of(opened)
    batches = (
        batches_of(config.calibration, inputs, context) if config.calibration is not None else [{}]
    )
    shapes = [{name: array.shape for name, array in feeds.items()} for feeds in batches]
    profiles = expand_profiles(config.profiles, inputs)
    unfit = dict.fromkeys(
        line for one in shapes for line in profile_problems(inputs, profiles, one)
    )
    found = [
        *_unlike(config, graph.integers_of(opened), opened.opset_imports[""]),
        *unfit,
        *graph.stuck_bytes(opened),
    ]
    if config.float_type == "fp16" and initializer_bytes(opened) > PROTOBUF_LIMIT_BYTES:
        found.append(
            "floats fp16: graphs of more than 2 GB are not converted to FP16 here; say `floats: fp32`"
        )
    # What stays in FP32 of a graph in FP16 is not known yet.
    gpus = targets if config.float_type == "fp32" else ()
    found += map(str, lint(_proto(opened), "tensorrt", gpus))
    _refuse(found, targets)


def build(config: TensorRTConfig, model: Path, out: Path, context: PassContext) -> PassOutput:
    """Write the graph, the engines and engine.json (or bundle.json) into ``out``.

    Raises:
        RequirementError: the graph in its final types is not one that the targets take.
        NumericalError: the graph computes NaN on the samples, or its answers are not finite in FP16.
        PassError: TensorRT refuses the graph.
    """
    backend, targets = chosen(config.backend), targets_here(config)
    opened = load_typed_model(model)
    if fixed := graph.fix_defaults(opened):
        context.note(f"inputs with a default are constants of an engine: {', '.join(fixed)}")
    graph.widen_bytes(opened)
    summary: dict[str, Any] = {
        "backend": backend.name,
        "targets": list(targets),
        "precision": config.precision,
    }
    summary |= {"floats": config.float_type}
    _tell(context, 0)
    if config.precision == "int4" and not graph.integers_of(opened).int4:
        summary |= _rounded(config, opened, context)
    if config.float_type == "fp16":
        summary |= _halved(config, opened, context)
    _refuse([str(one) for one in lint(_proto(opened), "tensorrt", targets)], targets)
    files = graph.write(opened, out)
    _tell(context, 1)
    if config.calibration is not None:
        summary["against_parent"] = against_parent(config.calibration, model, out, context)
    facts = BuildSettings(
        backend=backend.name,
        precision=config.precision,
        floats=config.float_type,
        workspace_mb=config.workspace_mb,
        optimization_level=config.optimization_level,
        profiles=expand_profiles(config.profiles, graph.inputs_of(opened)),
        onnx={name: digest_file(out / name) for name in files},
    )
    if not targets:
        write_record(bundle_of(facts, files[0]), out / BUNDLE)
        context.note(
            "no GPU here: a build bundle was written, and no engine; bundle.json holds the command that builds it"
        )
        return PassOutput(summary | {"executed": False})
    _tell(context, 2)
    manifest = _built(facts, targets, out, files[0])
    write_record(manifest, out / ENGINE)
    runs_here = context.device == "cuda" and unavailable_reason(out) is None
    summary["executed"] = runs_here and executed(config.calibration, manifest, out, context)
    if not summary["executed"]:
        context.note(
            f"built for {', '.join(targets)} and never run: accuracy is that of the same graph in ONNX Runtime, which stands in; "
            "its latency is not known"
        )
    summary["engine_bytes"] = {one.target: one.bytes for one in manifest.engines}
    summary["layer_types"] = manifest.layer_types
    return PassOutput(summary)


def check_written(out: Path, context: PassContext) -> None:
    """What was written is whole, and ONNX Runtime opens the graph.

    Raises:
        DamagedArtifactError: a file is not the one that engine.json tells of.
        ModelError: ONNX Runtime cannot open the graph.
    """
    if not (out / BUNDLE).is_file():
        read_verified_manifest(out)
    open_session("onnx", out, threads=context.threads).close()


def _proto(model: ir.Model) -> Any:
    return ir.to_proto(model)


def _unlike(config: TensorRTConfig, integers: graph.Integers, opset: int) -> list[str]:
    """Where the precision is not what the graph holds."""
    if config.precision in {"fp32", "fp16"} and integers.int8 + integers.int4:
        return [
            f"precision {config.precision}: the graph holds integers; say `precision: {'int4' if integers.int4 else 'int8'}`"
        ]
    if config.precision == "int8" and not integers.int8:
        return [
            "precision int8: the graph holds no INT8 integers; quantize it by a `qat` step with `target: tensorrt`"
        ]
    if config.precision == "int4" and not integers.int4:
        if integers.int8:
            return [
                "precision int4: the graph holds INT8 integers; say `precision: int8`, or give it the float graph"
            ]
        if opset < BLOCKS_OPSET:
            return [
                f"precision int4: the graph is of opset {opset}, and INT4 came with {BLOCKS_OPSET}; export it with `opset: 21`"
            ]
    return []


def _refuse(complaints: Sequence[str], targets: Sequence[str]) -> None:
    if not complaints:
        return
    remedies = [
        remedy for word, remedy in _REMEDIES.items() if any(word in line for line in complaints)
    ]
    raise RequirementError(
        f"TensorRT cannot build this for {', '.join(targets) or 'the GPU of a build bundle'}; what stands in the way:\n"
        + "\n".join(f"    {line}" for line in complaints),
        remedy="; ".join(remedies)
        or "`qat` with `target: tensorrt`, or `precision: fp16` of a float graph, makes what TensorRT takes",
    )


def _tell(context: PassContext, done: int) -> None:
    context.progress(_STAGES[done], done, len(_STAGES), {})


def _rounded(config: TensorRTConfig, model: ir.Model, context: PassContext) -> dict[str, Any]:
    """Store the weights of a float graph as INT4, and tell what is not."""
    count, left = store_int4_weights(model, config.block_size)
    if not count:
        raise RequirementError(
            f"no weight of the graph can be stored in blocks of {config.block_size} INT4 values",
            remedy="a smaller `block_size`, or another precision",
        )
    if left:
        context.note(
            f"not INT4, as blocks of {config.block_size} do not divide them: {', '.join(left)}"
        )
    return {"int4_weights": count, "not_int4": left}


def _halved(config: TensorRTConfig, model: ir.Model, context: PassContext) -> dict[str, Any]:
    """Turn the graph to FP16, and tell what stays."""
    assert config.calibration is not None  # noqa: S101 - the config demands it
    names = float_values(model)
    largest = measure_magnitudes(
        _proto(model), names, batches_of(config.calibration, graph.inputs_of(model), context)
    )
    if wrong := [name for name, value in largest.items() if np.isnan(value)]:
        raise NumericalError(
            f"the graph computes NaN in FP32 on samples of {config.calibration.data!r}: {', '.join(wrong)}",
            remedy="name data that were made for this model as `calibration.data`",
        )
    kept = convert_to_fp16(model, BlockList(largest, config.highest))
    reasons = Counter(one.reason for one in kept if one.cause is not Cause.RANGE)
    return {
        "largest_magnitude": max(
            (value for value in largest.values() if np.isfinite(value)), default=0.0
        ),
        "kept_fp32": [one.row() for one in kept],
        "kept_fp32_reasons": dict(reasons) | {"overflows FP16": len(kept) - reasons.total()},
    }


def _built(facts: BuildSettings, targets: Sequence[str], out: Path, file: str) -> EngineManifest:
    """Build an engine for each target, and tell of all."""
    engines = []
    for target in targets:
        engine = out / f"model.{target}.engine"
        named = target if BACKENDS[facts.backend].targets else None
        request = Request(
            backend=facts.backend,
            onnx=file,
            engine=engine.name,
            target=named,
            profiles=facts.profiles,
            workspace_mb=facts.workspace_mb,
            optimization_level=facts.optimization_level,
        )
        answer = engine_from_onnx(request, out)
        engines.append(
            EngineFile(
                file=engine.name,
                target=target,
                sha256=digest_file(engine),
                bytes=engine.stat().st_size,
                warnings=answer.warnings,
                executed=False,
            )
        )
    return EngineManifest(
        **dict(facts),
        backend_version=answer.version,
        inputs=answer.inputs,
        outputs=answer.outputs,
        layer_types=answer.layer_types,
        engines=tuple(engines),
    )
