"""The engine format: TensorRT engines, measured through their graph where their GPU is missing."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compressor.artifacts.manifest import Metric
from compressor.errors import ModelError
from compressor.foreign_files.json_files import read_json_object
from compressor.runtimes.format_records import Cost, SampleShapes
from compressor.runtimes.formats import Format, StandIn, StoredModel
from compressor.runtimes.onnxruntime.format import Onnx

if TYPE_CHECKING:
    from compressor.runtimes.formats import TensorReader
    from compressor.runtimes.layers import Layers
    from compressor.runtimes.session import Session
    from compressor.runtimes.tensor_listing import ListedTensor
    from compressor.runtimes.tensorrt.manifest import EngineManifest

_ENGINE, _BUNDLE = "engine.json", "bundle.json"
_GRAPH = Onnx()
"""The format of the graph beside an engine."""


class Engine(Format):
    """TensorRT engines with ``engine.json`` and their graph, or a build bundle."""

    name = "engine"
    summary = "a TensorRT engine with engine.json, or a build bundle with bundle.json"
    runtime = "TensorRT"
    precedence = 2

    def recognizes(self, path: Path) -> bool:
        """Return True for a folder with engine.json or bundle.json, or a file of such a folder."""
        is_file = path.is_file() and (path.suffix == ".engine" or path.name in {_ENGINE, _BUNDLE})
        folder = path.parent if is_file else path
        return (folder / _ENGINE).is_file() or (folder / _BUNDLE).is_file()

    def tensor_listing(self, path: Path) -> tuple[ListedTensor, ...] | None:
        """Return the weights of the graph that the engine was built from."""
        return _GRAPH.tensor_listing(path) if _GRAPH.recognizes(path) else None

    def describe(self, path: Path) -> list[tuple[str, str]]:
        """Return what engine.json or bundle.json records of the build."""
        from compressor.runtimes.tensorrt.manifest import read_engine_manifest

        if (path / _BUNDLE).is_file():
            bundle = read_json_object(
                path / _BUNDLE, ModelError, remedy="copy the build bundle again"
            )
            return [("engine", "not built yet: this is a build bundle"), *_flatten(bundle)]
        return _engine_rows(read_engine_manifest(path))

    def check(self, path: Path) -> None:
        """Check every file against the hashes in engine.json."""
        from compressor.runtimes.tensorrt.manifest import read_verified_manifest

        if not (path / _BUNDLE).is_file():
            read_verified_manifest(path)

    def cost(self, path: Path, sample_shapes: SampleShapes) -> Cost:
        """Return the size of the largest engine, and the graph's parameters, MACs and weights.

        The rest of an engine is kernels; its weights are stored in the types of the graph.
        """
        graph = _GRAPH.cost(path, sample_shapes)
        sizes = [file.stat().st_size for file in path.glob("*.engine")]
        size = max(sizes, default=graph.size_bytes)
        return Cost(size, graph.parameters, graph.macs, _weight_bytes(path))

    def stand_in(self, path: Path) -> StandIn | None:
        """Return the graph in ONNX Runtime where this machine lacks the engine's GPU."""
        from compressor.runtimes.tensorrt.session import unavailable_reason

        reason = unavailable_reason(path)
        return None if reason is None else StandIn(StoredModel(_GRAPH, path), reason)

    def execution_metrics(self, *, executed: bool) -> tuple[Metric, ...]:
        """Return ``executed``: 1 if the engine itself ran, for gate rules."""
        value = float(executed)
        return (Metric(name="executed", value=value, unit="count", better="higher", samples=1),)

    def open_session(self, path: Path, *, threads: int, device: str = "cpu") -> Session:
        """Open the engine on the first GPU; ``threads`` and ``device`` do not apply."""
        from compressor.runtimes.tensorrt.session import EngineSession

        return EngineSession(path)

    def open_layers(self, path: Path, threads: int) -> Layers:
        """Open the layers of the graph that the engine was built from."""
        return _GRAPH.open_layers(path, threads)

    def tensors(self, path: Path) -> Mapping[str, TensorReader]:
        """Return the weights of the graph that the engine was built from."""
        return _GRAPH.tensors(path)


def _weight_bytes(path: Path) -> int:
    """Return the bytes of the weights of the graph that an engine was built from."""
    import numpy as np

    listing = _GRAPH.tensor_listing(path) or ()
    return sum(tensor.values * np.dtype(tensor.dtype).itemsize for tensor in listing)


def _engine_rows(manifest: EngineManifest) -> list[tuple[str, str]]:
    level = manifest.optimization_level
    effort = "default optimization level" if level is None else f"optimization level {level}"
    layers = ", ".join(f"{count} {name}" for name, count in manifest.layer_types.items())
    rows = [
        ("built by", f"{manifest.backend} {manifest.backend_version}"),
        ("precision", f"{manifest.precision}; floats in {manifest.floats}"),
        ("workspace", f"{manifest.workspace_mb} MiB, {effort}"),
    ]
    for name, profile in manifest.profiles.items():
        low, best, high = list(profile.min), list(profile.opt), list(profile.max)
        rows.append((f"profile {name}", f"min {low}, opt {best}, max {high}"))
    for label, tensors in (("input", manifest.inputs), ("output", manifest.outputs)):
        rows += [(f"{label} {info.name}", f"{info.dtype} {list(info.shape)}") for info in tensors]
    rows.append(("network layers", layers))
    rows += [(file, f"sha256 {sha256}") for file, sha256 in manifest.onnx.items()]
    for engine in manifest.engines:
        status = f"executed on {engine.device}" if engine.executed else "never executed"
        size = f"{engine.bytes / 1e6:.3g} MB"
        rows.append((engine.file, f"{engine.target}, {size}, {status}, sha256 {engine.sha256}"))
        rows += [(f"{engine.file} warning", warning) for warning in engine.warnings]
    return rows


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Return nested JSON as dotted keys and values."""
    rows: list[tuple[str, str]] = []
    for key, value in tree.items():
        if isinstance(value, Mapping):
            rows += _flatten(value, f"{prefix}{key}.")
        else:
            rows.append((f"{prefix}{key}", str(value)))
    return rows
