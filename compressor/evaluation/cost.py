"""What a model is, beside what it does: bytes on disk, parameters, multiply-accumulates."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from compressor.artifacts.kinds import OF_FAMILIES, Kind
from compressor.artifacts.manifest import Metric
from compressor.models.facts import facts_of, size_bytes


def cost_metrics(
    kind: Kind, folder: Path, sample_shapes: Mapping[str, tuple[int, ...]]
) -> tuple[Metric, ...]:
    """Size, parameters and MACs; what cannot be told is left out.

    Args:
        kind: torch, quantized: the family's own arithmetic. onnx, engine: counted from the graph; an engine's size is that of its
            own file, or of the largest where there are several.
        folder: the model's folder.
        sample_shapes: the shape of each array of one sample, its batch axis (1) included; fixes what varies in an ONNX graph.
    """
    parameters, macs = _counted(kind, folder, sample_shapes)
    figures = (
        ("size_bytes", _size(kind, folder), "bytes"),
        ("parameters", parameters, "count"),
        ("macs", macs, "count"),
    )
    return tuple(
        Metric(name=name, value=float(value), unit=unit, better="lower", samples=1)
        for name, value, unit in figures
        if value is not None
    )


def _size(kind: Kind, folder: Path) -> int:
    engines = (
        [file.stat().st_size for file in folder.glob("*.engine")] if kind is Kind.ENGINE else []
    )
    return max(engines) if engines else size_bytes(folder)


def _counted(
    kind: Kind, folder: Path, sample_shapes: Mapping[str, tuple[int, ...]]
) -> tuple[int | None, int | None]:
    if kind in OF_FAMILIES:
        facts = facts_of(folder)
        return facts["parameters"], facts["macs"]
    if kind in {Kind.ONNX, Kind.ENGINE}:
        from compressor.graphs.files import read_graph
        from compressor.runtimes.onnxruntime import cost as onnx_cost

        graph = read_graph(folder)
        return onnx_cost.parameters(graph), onnx_cost.macs(graph, sample_shapes)
    return None, None
