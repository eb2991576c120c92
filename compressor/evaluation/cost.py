"""Static cost metrics of a model: bytes on disk, parameters, multiply-accumulates."""

from __future__ import annotations

from compressor.artifacts.manifest import Metric
from compressor.runtimes.formats import SampleShapes, StoredModel


def cost_metrics(model: StoredModel, sample_shapes: SampleShapes) -> tuple[Metric, ...]:
    """Return size, parameters and MACs; what the format cannot determine is omitted.

    Args:
        model: the model on disk.
        sample_shapes: the shape of each array of one sample, batch axis (1) included.
    """
    cost = model.format.cost(model.path, sample_shapes)
    values = (
        ("size_bytes", cost.size_bytes, "bytes"),
        ("parameters", cost.parameters, "count"),
        ("macs", cost.macs, "count"),
    )
    return tuple(
        Metric(name=name, value=float(value), unit=unit, better="lower", samples=1)
        for name, value, unit in values
        if value is not None
    )
