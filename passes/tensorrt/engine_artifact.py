"""The ``tensorrt`` pass as a whole: from an ONNX folder to a folder with engines or a bundle."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from onnxscript import ir

from compressor.artifacts.fingerprint import digest_file
from compressor.data.contract import Batch
from compressor.engine.contract import PassContext, PassOutput
from compressor.graphs.default_inputs import freeze_default_inputs
from compressor.graphs.files import load_typed_model
from compressor.runtimes.formats import open_session
from compressor.runtimes.tensorrt.backends import resolve_backend
from compressor.runtimes.tensorrt.manifest import (
    BUNDLE,
    ENGINE,
    BuildSettings,
    EngineManifest,
    read_verified_manifest,
    write_record,
)
from compressor.runtimes.tensorrt.profiles import expand_profiles
from compressor.runtimes.tensorrt.session import unavailable_reason
from passes.common.graph_comparison import compare_graphs
from passes.common.graph_samples import graph_inputs, load_feeds
from passes.tensorrt.compile import build_bundle, compile_engines
from passes.tensorrt.config import TensorRTConfig
from passes.tensorrt.graph import (
    cast_byte_inputs,
    name_dimensions,
    write_graph,
)
from passes.tensorrt.precision import convert_precision
from passes.tensorrt.requirements import check_converted_graph
from passes.tensorrt.select_backend import targets_on_this_machine
from passes.tensorrt.smoke_test import run_engine

_STAGES = ("ranges", "compare")


def build_artifact(
    config: TensorRTConfig, model: Path, out: Path, context: PassContext
) -> PassOutput:
    """Write the converted graph, and engines with engine.json or a bundle, into ``out``.

    Raises:
        RequirementError: the targets do not support the graph in its final types.
        NumericalError: the graph computes NaN on the samples, or is not finite in FP16.
        PassError: TensorRT cannot build the graph.
    """
    targets = targets_on_this_machine(config)
    graph = load_typed_model(model)
    if frozen := freeze_default_inputs(graph):
        context.note(f"inputs with a default value became constants: {', '.join(frozen)}")
    cast_byte_inputs(graph)
    name_dimensions(graph)
    summary: dict[str, Any] = {
        "backend": resolve_backend(config.backend).name,
        "targets": list(targets),
        "precision": config.precision,
        "floats": config.float_type,
    }
    _report_progress(context, 0)
    feeds: list[Batch] = []
    if config.calibration is not None:
        feeds = load_feeds(config.calibration, graph_inputs(graph), context, model)
    summary |= convert_precision(config, graph, feeds, context)
    check_converted_graph(config, graph, targets)
    files = write_graph(graph, out)
    _report_progress(context, 1)
    if feeds:
        differences = compare_graphs(model, out, feeds, context.threads)
        summary["against_parent"] = {
            "max_abs": max(each.max_abs for each in differences.values()),
            "cosine": min(each.cosine for each in differences.values()),
            "relative_error": max(each.relative_error for each in differences.values()),
        }
    settings = _build_settings(config, graph, {name: digest_file(out / name) for name in files})
    if not targets:
        write_record(build_bundle(settings, files[0]), out / BUNDLE)
        context.note(
            "this machine has no GPU to build for: a build bundle was written, and no engine; "
            f"{BUNDLE} holds the command that builds it"
        )
        return PassOutput(summary | {"executed": False})

    def progress(what: str, done: int, total: int) -> None:
        context.progress(what, done, total, {})

    manifest = compile_engines(settings, targets, out, files[0], progress)
    write_record(manifest, out / ENGINE)
    summary["executed"] = _run_if_possible(config, manifest, out, context)
    summary["engine_bytes"] = {engine.target: engine.bytes for engine in manifest.engines}
    summary["layer_types"] = manifest.layer_types
    return PassOutput(summary)


def _build_settings(
    config: TensorRTConfig, graph: ir.Model, digests: dict[str, str]
) -> BuildSettings:
    return BuildSettings(
        backend=resolve_backend(config.backend).name,
        precision=config.precision,
        floats=config.float_type,
        workspace_mb=config.workspace_mb,
        optimization_level=config.optimization_level,
        profiles=expand_profiles(config.profiles, graph_inputs(graph)),
        onnx=digests,
    )


def _run_if_possible(
    config: TensorRTConfig, manifest: EngineManifest, out: Path, context: PassContext
) -> bool:
    """Run the engine once if there are samples and its GPU; return True if it ran."""
    calibration = config.calibration
    runs_here = context.device == "cuda" and unavailable_reason(out) is None
    if calibration is not None and runs_here:
        run_engine(calibration, manifest, out, context)
        return True
    targets = ", ".join(engine.target for engine in manifest.engines)
    context.note(
        f"built for {targets} and never run: accuracy is measured on the same graph in ONNX "
        "Runtime, and latency is unknown"
    )
    return False


def check_artifact(out: Path, context: PassContext) -> None:
    """Check what was written.

    Raises:
        DamagedArtifactError: a file does not match engine.json.
        ModelError: ONNX Runtime cannot open the graph.
    """
    if not (out / BUNDLE).is_file():
        read_verified_manifest(out)
    open_session("onnx", out, threads=context.threads).close()


def _report_progress(context: PassContext, done: int) -> None:
    context.progress(_STAGES[done], done, len(_STAGES), {})
