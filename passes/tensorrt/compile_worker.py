"""``python -m passes.tensorrt.compile_worker``: build one engine in this process, which does nothing else.

One code path over tensorrt-rtx and over enterprise TensorRT from 10 on. Reads a ``Request`` from stdin and writes an ``Answer``
to stdout; whatever the library prints past its logger goes to stderr.
"""

from __future__ import annotations

import os
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from pydantic import Field

from compressor.config.record import Record
from compressor.runtimes.tensorrt.backends import BACKENDS, BackendName, library
from compressor.runtimes.tensorrt.manifest import Tensor
from compressor.runtimes.tensorrt.profiles import Profile

NO_DRIVER = ("Cuda Runtime", "CUDA initialization failure", "CUDA lazy loading")
"""What is said of every build without a GPU."""
_MEBIBYTE = 1 << 20


class Request(Record):
    """One build."""

    backend: BackendName
    onnx: str
    """The file; its external data lies beside it."""
    engine: str
    """Where the engine is written."""
    target: str | None
    """A compute capability such as ``sm86``; None for the GPU at hand."""
    profiles: dict[str, Profile] = Field(default_factory=dict)
    workspace_mb: int
    optimization_level: int | None


class Answer(Record):
    """What came of it: ``errors``, or an engine."""

    version: str
    """Of the library."""
    warnings: tuple[str, ...]
    errors: tuple[str, ...]
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    layer_types: dict[str, int]
    """Type to the number of layers of the network whose first result has it."""


def main() -> int:
    """Answer one request."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    answer = build(Request.model_validate_json(sys.stdin.buffer.read()))
    answers.write(answer.model_dump_json())
    answers.close()
    return 0


def build(request: Request) -> Answer:
    """Parse the graph, build the engine, and write it.

    Raises:
        MissingExtraError: the library is not installed.
    """
    trt = library(BACKENDS[request.backend])
    warnings: list[str] = []
    errors: list[str] = []
    logger = _logger(trt, warnings, errors)
    builder = trt.Builder(logger)
    network = builder.create_network(_network_flags(trt))
    config = builder.create_builder_config()
    if request.target is not None:
        config.num_compute_capabilities = 1
        config.set_compute_capability(getattr(trt.ComputeCapability, request.target.upper()), 0)
    parser = trt.OnnxParser(network, logger)
    if parser.parse_from_file(request.onnx):
        serialized = _serialized(trt, builder, network, config, request)
        if serialized is not None:
            Path(request.engine).write_bytes(bytes(serialized))
            errors = []
        elif not errors:
            errors = ["it says no more than that"]
    else:
        errors = [_parser_error(parser.get_error(index)) for index in range(parser.num_errors)]
    return Answer(
        version=trt.__version__,
        warnings=tuple(warnings),
        errors=tuple(errors),
        inputs=tuple(_tensor(network.get_input(index)) for index in range(network.num_inputs))
        if not errors
        else (),
        outputs=tuple(_tensor(network.get_output(index)) for index in range(network.num_outputs))
        if not errors
        else (),
        layer_types=_layer_types(network) if not errors else {},
    )


def keep(lines: list[str], text: str) -> None:
    """Add a line that is not there yet and says something."""
    text = " ".join(text.split())
    if text and text not in lines and not any(noise in text for noise in NO_DRIVER):
        lines.append(text)


def _network_flags(trt: Any) -> int:
    """Strongly typed; 10 knows a flag for explicit batches, which later ones have no other way than."""
    flags = trt.NetworkDefinitionCreationFlag
    return sum(
        1 << int(getattr(flags, name))
        for name in ("STRONGLY_TYPED", "EXPLICIT_BATCH")
        if hasattr(flags, name)
    )


def _serialized(trt: Any, builder: Any, network: Any, config: Any, request: Request) -> Any:
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, request.workspace_mb * _MEBIBYTE)
    if request.optimization_level is not None:
        config.builder_optimization_level = request.optimization_level
    if request.profiles:
        profile = builder.create_optimization_profile()
        for name, shapes in request.profiles.items():
            profile.set_shape(name, shapes.min, shapes.opt, shapes.max)
        config.add_optimization_profile(profile)
    return builder.build_serialized_network(network, config)


def _logger(trt: Any, warnings: list[str], errors: list[str]) -> Any:
    class Logger(trt.ILogger):  # type: ignore[misc]
        """Keeps what is worth telling."""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, text: str) -> None:
            """Called by the library."""
            if severity in {trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR}:
                keep(errors, text)
            elif severity == trt.ILogger.WARNING:
                keep(warnings, text)

    return Logger()


def _parser_error(error: Any) -> str:
    where = f"{error.node_operator()} {error.node_name()}".strip()
    told = next(
        (
            line
            for line in error.desc().splitlines()
            if not any(noise in line for noise in NO_DRIVER)
        ),
        error.desc(),
    )
    return f"{where}: {told}" if where else told


def _tensor(tensor: Any) -> Tensor:
    return Tensor(name=tensor.name, dtype=tensor.dtype.name.lower(), shape=tuple(tensor.shape))


def _layer_types(network: Any) -> dict[str, int]:
    layers = (network.get_layer(index) for index in range(network.num_layers))
    found = Counter(layer.get_output(0).dtype.name.lower() for layer in layers if layer.num_outputs)
    return dict(sorted(found.items()))


if __name__ == "__main__":
    sys.exit(main())
