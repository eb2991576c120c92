"""Discovery of the cuttable axes of any module."""

from __future__ import annotations

from compressor.models.capabilities.cuttable_axes import CuttableAxes
from compressor.models.capabilities.discovered_axes.grouping import group_axes
from compressor.models.capabilities.discovered_axes.tracing import trace_channels
from compressor.models.capabilities.loaded_model import LoadedModel


def discover_axes(model: LoadedModel) -> CuttableAxes:
    """Return the channels, inner widths and heads of a module.

    The axes have no config fields yet: the family of the model adds them (``Family.adopt``), and
    keeps those that its configs can describe.
    """
    return CuttableAxes(group_axes(trace_channels(model.module, model.batch)))
