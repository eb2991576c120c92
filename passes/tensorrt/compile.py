"""Compile graphs to engines in a process of their own, or write the command that does so.

TensorRT's compiler can crash; in its own process that fails the step and not the run.

The compiler also orders some of its work by the addresses of objects: with randomized addresses,
the bytes of a larger engine differ from build to build. So the process has fixed addresses, a heap
in one piece, a fixed hash seed and few environment variables, and writes no bytecode (which would
make a first run allocate differently from a second one).
"""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from compressor.artifacts.causes import cause_in_text, describe_ending, failed_child
from compressor.artifacts.fingerprint import digest_file
from compressor.errors import PassError
from compressor.graphs.files import MODEL, read_graph
from compressor.graphs.lint.targets import lint
from compressor.runtimes.formats import open_session
from compressor.runtimes.tensorrt.backends import BACKENDS
from compressor.runtimes.tensorrt.manifest import (
    BuildBundle,
    BuildSettings,
    EngineFile,
    EngineManifest,
)
from compressor.runtimes.tensorrt.profiles import Profile
from compressor.runtimes.working_inputs import runs
from passes.common.reproducible_child import run_module
from passes.tensorrt.compile_worker import BuildReport, BuildRequest, add_message

_TAIL_LINES = 12
_OTHER_REMEDY = (
    "try a profile of one size (`min`, `opt` and `max` equal), another `precision` or `floats`: no "
    "rule of `lint` explains it"
)
_CONTROL_FLOW = ("If", "Loop", "Scan")


def compile_engines(
    settings: BuildSettings,
    targets: Sequence[str],
    folder: Path,
    file: str,
    progress: Callable[[str, int, int], None],
) -> EngineManifest:
    """Build an engine for each target, and return the manifest of all.

    Args:
        settings: inputs of the builder.
        targets: compute capabilities.
        folder: folder with the graph; the engines are written to it.
        file: name of the graph's file.
        progress: called before each build with its name, the engines built, and their number.

    Raises:
        PassError: as ``engine_from_onnx``.
    """
    engines = []
    for number, target in enumerate(targets):
        progress(f"build for {target}", number, len(targets))
        engine = folder / f"model.{target}.engine"
        request = BuildRequest(
            backend=settings.backend,
            onnx=file,
            engine=engine.name,
            target=target if BACKENDS[settings.backend].targets else None,
            profiles=settings.profiles,
            workspace_mb=settings.workspace_mb,
            optimization_level=settings.optimization_level,
        )
        report = engine_from_onnx(request, folder)
        engines.append(
            EngineFile(
                file=engine.name,
                target=target,
                sha256=digest_file(engine),
                bytes=engine.stat().st_size,
                warnings=report.warnings,
                executed=False,
            )
        )
    return EngineManifest(
        **dict(settings),
        backend_version=report.version,
        inputs=report.inputs,
        outputs=report.outputs,
        layer_types=report.layer_types,
        engines=tuple(engines),
    )


def engine_from_onnx(request: BuildRequest, folder: Path) -> BuildReport:
    """Parse a graph, build its engine and write it; both files are relative to ``folder``.

    Raises:
        PassError: the parser or the builder fails or crashes; the message holds their output.
        StorageError: the disk is full.
        ResourceError: memory ran out, or the process was killed.
    """
    library = BACKENDS[request.backend].distribution
    subject = f"{request.onnx} for {request.target or 'the GPU of this machine'}"
    process = run_module("passes.tensorrt.compile_worker", (), folder, request.model_dump_json())
    messages: list[str] = []
    for line in process.stderr.splitlines():
        add_message(messages, line)
    if process.returncode != 0:
        tail = _indent(messages[-_TAIL_LINES:] or ["it printed nothing"])
        building = f"the process in which {library} builds {subject}"
        if (cause := failed_child(process.returncode, building, tail, folder)) is not None:
            raise cause
        raise PassError(
            f"{library} {describe_ending(process.returncode)} while building {subject}:\n{tail}",
            remedy="try another `precision`, `floats` or `optimization_level`: "
            "a crash of the compiler does not mean that the graph is wrong",
        )
    report = BuildReport.model_validate_json(process.stdout)
    if report.errors:
        if (cause := cause_in_text("\n".join(report.errors), folder)) is not None:
            raise cause
        raise PassError(
            f"{library} {report.version} cannot build {subject}:\n" + _indent(report.errors),
            remedy=_refusal_remedy(request, folder),
        )
    for line in report.warnings:
        add_message(messages, line)
    return report.model_copy(update={"warnings": tuple(messages)})


def _refusal_remedy(request: BuildRequest, folder: Path) -> str:
    """Return what to change about a graph, or about its profiles, that TensorRT cannot build.

    Where it fails on shapes, branches and loops, it names no node, and there is no rule for them.
    """
    remedies = list(_failing_profiles(request, folder))
    graph = read_graph(folder / request.onnx)
    if lint(graph, "tensorrt"):
        remedies.append("`autoglm-compress lint --target tensorrt` lists nodes that it refuses")
    counts = Counter(node.op_type for node in graph.graph.node)
    found = [f"{counts[name]} {name}" for name in _CONTROL_FLOW if counts[name]]
    if found:
        remedies.append(
            f"the graph has {', '.join(found)}, some forms of which it cannot build: export the "
            "model without branches and loops, with inputs of fixed sizes"
        )
    return "; ".join(remedies) or _OTHER_REMEDY


def _failing_profiles(request: BuildRequest, folder: Path) -> Iterator[str]:
    """Yield the bounds of profiles with which ONNX Runtime does not run the graph either."""
    if not request.profiles or request.onnx != MODEL:
        return
    with open_session("onnx", folder, threads=1) as session:
        fixed = {
            spec.name: [size for size in spec.shape if isinstance(size, int)]
            for spec in session.inputs
        }
        for bound in ("min", "opt", "max"):
            shapes = {
                name: getattr(request.profiles[name], bound) if name in request.profiles else sizes
                for name, sizes in fixed.items()
            }
            if not runs(session, shapes):
                listed = ", ".join(f"{name} {list(shapes[name])}" for name in request.profiles)
                yield (
                    f"`{bound}` of `profiles` ({listed}): ONNX Runtime does not compute the graph "
                    "with it either; set shapes that the model can have"
                )


def _indent(lines: Sequence[str]) -> str:
    return "\n".join(f"    {line}" for line in lines)


def build_bundle(settings: BuildSettings, file: str) -> BuildBundle:
    """Return a bundle for a graph, with the trtexec command that builds its engine."""
    command = [
        "trtexec",
        f"--onnx={file}",
        "--stronglyTyped",
        f"--memPoolSize=workspace:{settings.workspace_mb}",
    ]
    if settings.optimization_level is not None:
        command.append(f"--builderOptimizationLevel={settings.optimization_level}")
    if settings.profiles:
        command += [
            f"--{bound}Shapes={_trtexec_shapes(settings.profiles, bound)}"
            for bound in ("min", "opt", "max")
        ]
    command.append("--saveEngine=model.engine")
    return BuildBundle(**dict(settings), command=shlex.join(command))


def _trtexec_shapes(profiles: Mapping[str, Profile], bound: str) -> str:
    shapes: dict[str, Sequence[int]] = {
        name: getattr(profile, bound) for name, profile in profiles.items()
    }
    return ",".join(f"{name}:{'x'.join(map(str, shape))}" for name, shape in shapes.items())
