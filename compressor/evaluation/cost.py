"""What a model is, beside what it does: bytes on disk, parameters, multiply-accumulates."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from compressor.artifacts.kinds import OF_FAMILIES, Kind
from compressor.artifacts.manifest import Metric
from compressor.models.facts import facts_of, size_bytes


def cost_metrics(kind: Kind, folder: Path, sample_shapes: Mapping[str, tuple[int, ...]]) -> tuple[Metric, ...]:
    """Size, parameters and MACs; what cannot be told is left out.

    Args:
        kind: torch, quantized: the family's own arithmetic. onnx: counted from the graph.
        folder: the model's folder.
        sample_shapes: the shape of each array of one sample, its batch axis (1) included; fixes what varies in an ONNX graph.
    """
    parameters, macs = _counted(kind, folder, sample_shapes)
    figures = (
        ("size_bytes", size_bytes(folder), "bytes"),
        ("parameters", parameters, "count"),
        ("macs", macs, "count"),
    )
    return tuple(
        Metric(name=name, value=float(value), unit=unit, better="lower", samples=1)
        for name, value, unit in figures
        if value is not None
    )


def _counted(kind: Kind, folder: Path, sample_shapes: Mapping[str, tuple[int, ...]]) -> tuple[int | None, int | None]:
    if kind in OF_FAMILIES:
        facts = facts_of(folder)
        return facts["parameters"], facts["macs"]
    if kind is Kind.ONNX:
        from compressor.evaluation import onnx_cost
        from compressor.runtimes.onnx_files import read_graph

        graph = read_graph(folder)
        return onnx_cost.parameters(graph), onnx_cost.macs(graph, sample_shapes)
    return None, None
