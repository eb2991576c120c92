"""An ONNX file to a TensorRT engine: one code path over tensorrt-rtx and over enterprise TensorRT from 10 on."""

from __future__ import annotations

import os
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from compressor.errors import PassError
from compressor.runtimes.engine_files import Tensor
from compressor.runtimes.tensorrt_backends import Backend, library
from compressor.runtimes.tensorrt_profiles import Profile

_NO_DRIVER = ("Cuda Runtime", "CUDA initialization failure", "CUDA lazy loading")  # said of every build without a GPU
_MEBIBYTE = 1 << 20


@dataclass(frozen=True, slots=True)
class Recipe:
    """What a build goes by, beside the graph."""

    profiles: Mapping[str, Profile]
    workspace_mb: int
    optimization_level: int | None


@dataclass(slots=True)
class _Said:
    """What the library had to say, each line once."""

    warnings: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    def add(self, lines: list[str], text: str) -> None:
        text = " ".join(text.split())
        if text and text not in lines and not any(noise in text for noise in _NO_DRIVER):
            lines.append(text)


@dataclass(frozen=True, slots=True)
class Built:
    """An engine, and what is known of it."""

    serialized: bytes
    warnings: tuple[str, ...]
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    layer_types: dict[str, int]
    """Type to the number of layers of the network whose first result has it."""


def engine_from_onnx(backend: Backend, onnx: Path, target: str | None, recipe: Recipe) -> Built:
    """Parse a graph and build its engine.

    Args:
        backend: the library.
        onnx: the file; its external data lies beside it.
        target: a compute capability such as ``sm86``; None for the GPU at hand.
        recipe: profiles, workspace and effort.

    Raises:
        PassError: the parser or the builder refuses it; all that they said is told.
        MissingExtraError: the library is not installed.
    """
    trt = library(backend)
    said = _Said()
    with _listening(said):
        logger = _logger(trt, said)
        builder = trt.Builder(logger)
        network = builder.create_network(_network_flags(trt))
        config = builder.create_builder_config()
        if target is not None:
            config.num_compute_capabilities = 1
            config.set_compute_capability(getattr(trt.ComputeCapability, target.upper()), 0)
        parser = trt.OnnxParser(network, logger)
        parsed = parser.parse_from_file(str(onnx))
        serialized = _built(trt, builder, network, config, recipe) if parsed else None
    if serialized is None:
        told = (
            [_parser_error(parser.get_error(index)) for index in range(parser.num_errors)]
            if not parsed
            else said.errors
        )
        raise PassError(
            f"{backend.distribution} {trt.__version__} does not build {onnx.name} for {target or 'this GPU'}:\n"
            + "\n".join(f"    {line}" for line in told or ["it says no more than that"]),
            remedy="`autoglm-compress lint --target tensorrt` names what TensorRT is known to refuse",
        )
    return Built(
        bytes(serialized),
        tuple(said.warnings),
        tuple(_tensor(network.get_input(index)) for index in range(network.num_inputs)),
        tuple(_tensor(network.get_output(index)) for index in range(network.num_outputs)),
        _layer_types(network),
    )


def _network_flags(trt: Any) -> int:
    """Strongly typed; 10 knows a flag for explicit batches, which later ones have no other way than."""
    flags = trt.NetworkDefinitionCreationFlag
    return sum(1 << int(getattr(flags, name)) for name in ("STRONGLY_TYPED", "EXPLICIT_BATCH") if hasattr(flags, name))


def _built(trt: Any, builder: Any, network: Any, config: Any, recipe: Recipe) -> Any:
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, recipe.workspace_mb * _MEBIBYTE)
    if recipe.optimization_level is not None:
        config.builder_optimization_level = recipe.optimization_level
    if recipe.profiles:
        profile = builder.create_optimization_profile()
        for name, shapes in recipe.profiles.items():
            profile.set_shape(name, shapes.min, shapes.opt, shapes.max)
        config.add_optimization_profile(profile)
    return builder.build_serialized_network(network, config)


def _logger(trt: Any, said: _Said) -> Any:
    class Logger(trt.ILogger):  # type: ignore[misc]
        """Keeps what is worth telling."""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, text: str) -> None:
            """Called by the library."""
            if severity in {trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR}:
                said.add(said.errors, text)
            elif severity == trt.ILogger.WARNING:
                said.add(said.warnings, text)

    return Logger()


def _parser_error(error: Any) -> str:
    where = f"{error.node_operator()} {error.node_name()}".strip()
    told = next(
        (line for line in error.desc().splitlines() if not any(noise in line for noise in _NO_DRIVER)), error.desc()
    )
    return f"{where}: {told}" if where else told


def _tensor(tensor: Any) -> Tensor:
    return Tensor(name=tensor.name, dtype=tensor.dtype.name.lower(), shape=tuple(tensor.shape))


def _layer_types(network: Any) -> dict[str, int]:
    layers = (network.get_layer(index) for index in range(network.num_layers))
    found = Counter(layer.get_output(0).dtype.name.lower() for layer in layers if layer.num_outputs)
    return dict(sorted(found.items()))


@contextmanager
def _listening(said: _Said) -> Iterator[None]:
    """The compiler within prints, past its logger, to the process's own output, where a program may be reading JSON."""
    sys.stdout.flush()
    sys.stderr.flush()
    saved = os.dup(1), os.dup(2)
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as printed:
        for number in (1, 2):
            os.dup2(printed.fileno(), number)
        try:
            yield
        finally:
            for number, descriptor in zip((1, 2), saved, strict=True):
                os.dup2(descriptor, number)
                os.close(descriptor)
            printed.seek(0)
            for line in printed:
                said.add(said.warnings, line)
