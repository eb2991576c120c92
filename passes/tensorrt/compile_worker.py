"""``python -m passes.tensorrt.compile_worker``: build one engine in a process of its own.

One code path for tensorrt-rtx and for enterprise TensorRT 10 or newer. Reads a ``BuildRequest``
from stdin and writes a ``BuildReport`` to stdout; everything that the library prints itself goes to
stderr.
"""

from __future__ import annotations

import os
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from pydantic import Field

from compressor.config.record import Record
from compressor.runtimes.tensorrt.backends import BACKENDS, BackendName, import_backend
from compressor.runtimes.tensorrt.manifest import TensorInfo
from compressor.runtimes.tensorrt.profiles import Profile

_MISSING_DRIVER = ("Cuda Runtime", "CUDA initialization failure", "CUDA lazy loading")
"""Parts of messages that the library logs in every build on a machine without a GPU."""
_MEBIBYTE = 1 << 20


class BuildRequest(Record):
    """One build."""

    backend: BackendName
    onnx: str
    """The graph's file; its external data lies beside it."""
    engine: str
    """File to write the engine to."""
    target: str | None
    """Compute capability such as ``sm86``; None for the GPU of this machine."""
    profiles: dict[str, Profile] = Field(default_factory=dict)
    workspace_mb: int
    optimization_level: int | None


class BuildReport(Record):
    """Result of a build: an engine was written if there are no errors."""

    version: str
    """Version of the library."""
    warnings: tuple[str, ...]
    errors: tuple[str, ...]
    inputs: tuple[TensorInfo, ...] = ()
    outputs: tuple[TensorInfo, ...] = ()
    layer_types: dict[str, int] = Field(default_factory=dict)
    """Number of layers in the network by the type of their first output."""


def main() -> int:
    """Answer one request."""
    stdout = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    report = build(BuildRequest.model_validate_json(sys.stdin.buffer.read()))
    stdout.write(report.model_dump_json())
    stdout.close()
    return 0


def build(request: BuildRequest) -> BuildReport:
    """Parse the graph, build the engine, and write it.

    Raises:
        MissingExtraError: the library is not installed.
    """
    trt = import_backend(BACKENDS[request.backend])
    warnings: list[str] = []
    errors: list[str] = []
    logger = _create_logger(trt, warnings, errors)
    builder = trt.Builder(logger)
    network = builder.create_network(_network_flags(trt))
    config = builder.create_builder_config()
    if request.target is not None:
        config.num_compute_capabilities = 1
        config.set_compute_capability(getattr(trt.ComputeCapability, request.target.upper()), 0)
    parser = trt.OnnxParser(network, logger)
    if parser.parse_from_file(request.onnx):
        serialized = _serialize(trt, builder, network, config, request)
        if serialized is not None:
            Path(request.engine).write_bytes(bytes(serialized))
            errors = []
        elif not errors:
            errors = ["TensorRT gave no details"]
    else:
        errors = [_parser_error(parser.get_error(index)) for index in range(parser.num_errors)]
    report = BuildReport(version=trt.__version__, warnings=tuple(warnings), errors=tuple(errors))
    return report if errors else report.model_copy(update=_describe_network(network))


def add_message(messages: list[str], text: str) -> None:
    """Append a message, unless it is empty, present, or due to the missing driver."""
    text = " ".join(text.split())
    if text and text not in messages and not _is_noise(text):
        messages.append(text)


def _is_noise(text: str) -> bool:
    return any(part in text for part in _MISSING_DRIVER)


def _network_flags(trt: Any) -> int:
    """Return the flags of a strongly typed network with an explicit batch dimension.

    TensorRT 10 has a flag for explicit batches; newer versions have no other kind of network.
    """
    flags = trt.NetworkDefinitionCreationFlag
    return sum(
        1 << int(getattr(flags, name))
        for name in ("STRONGLY_TYPED", "EXPLICIT_BATCH")
        if hasattr(flags, name)
    )


def _serialize(trt: Any, builder: Any, network: Any, config: Any, request: BuildRequest) -> Any:
    """Return the serialized engine; None if the builder failed."""
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, request.workspace_mb * _MEBIBYTE)
    if request.optimization_level is not None:
        config.builder_optimization_level = request.optimization_level
    if request.profiles:
        profile = builder.create_optimization_profile()
        for name, shapes in request.profiles.items():
            profile.set_shape(name, shapes.min, shapes.opt, shapes.max)
        config.add_optimization_profile(profile)
    return builder.build_serialized_network(network, config)


def _create_logger(trt: Any, warnings: list[str], errors: list[str]) -> Any:
    class Logger(trt.ILogger):  # type: ignore[misc]
        """Collects warnings and errors."""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, text: str) -> None:
            """Record a message of the library."""
            if severity in {trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR}:
                add_message(errors, text)
            elif severity == trt.ILogger.WARNING:
                add_message(warnings, text)

    return Logger()


def _parser_error(error: Any) -> str:
    """Return the node and the first line of an error that is not due to the missing driver."""
    node = f"{error.node_operator()} {error.node_name()}".strip()
    lines = (line for line in error.desc().splitlines() if not _is_noise(line))
    detail = next(lines, error.desc())
    return f"{node}: {detail}" if node else detail


def _describe_network(network: Any) -> dict[str, Any]:
    """Return inputs, outputs and layer types, as fields of a ``BuildReport``."""
    inputs = (network.get_input(index) for index in range(network.num_inputs))
    outputs = (network.get_output(index) for index in range(network.num_outputs))
    return {
        "inputs": tuple(_describe_tensor(tensor) for tensor in inputs),
        "outputs": tuple(_describe_tensor(tensor) for tensor in outputs),
        "layer_types": _layer_types(network),
    }


def _describe_tensor(tensor: Any) -> TensorInfo:
    return TensorInfo(name=tensor.name, dtype=tensor.dtype.name.lower(), shape=tuple(tensor.shape))


def _layer_types(network: Any) -> dict[str, int]:
    layers = (network.get_layer(index) for index in range(network.num_layers))
    counts = Counter(
        layer.get_output(0).dtype.name.lower() for layer in layers if layer.num_outputs
    )
    return dict(sorted(counts.items()))


if __name__ == "__main__":
    sys.exit(main())
