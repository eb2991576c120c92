"""Kinds of axes that the config of a class can describe, found on the device ``meta``."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from functools import lru_cache
from typing import Any

import torch
from torch import nn

from compressor.models.capabilities.cuttable_axes import AxisKind
from compressor.models.capabilities.discovered_axes.grouping import group_axes
from compressor.models.capabilities.discovered_axes.tracing import trace_channels
from compressor.models.families.transformers.generic.axis_fields import (
    FieldProbe,
    axes_with_fields,
)
from compressor.models.families.transformers.generic.description import describe
from compressor.models.families.transformers.generic.layer_fields import layer_axes
from compressor.models.families.transformers.generic.sample import sample_batch
from compressor.models.families.transformers.modules import build_without_data

_MOST_CHANNELS = 2_000_000
"""Sum of the lengths of all weights' first dimensions, beyond which the search takes too long for
a plan."""


def possible_axis_kinds(
    tree: Mapping[str, Any], wanted: Collection[AxisKind]
) -> frozenset[AxisKind] | None:
    """Return kinds of axes that fields of config.json count; None if that shows in a run alone.

    Values decide whether the smaller model computes the same, so some of them may not be cut.

    Args:
        tree: config.json.
        wanted: kinds, one of which is enough: all kinds are returned if none of them is there.
    """
    return _possible_axis_kinds(json.dumps(dict(tree), sort_keys=True), frozenset(wanted))


@lru_cache(maxsize=8)
def _possible_axis_kinds(content: str, wanted: frozenset[AxisKind]) -> frozenset[AxisKind] | None:
    tree = json.loads(content)
    module: nn.Module = build_without_data(tree)
    module.eval()
    if sum(len(value) for value in module.state_dict().values() if value.ndim) > _MOST_CHANNELS:
        return None
    batch = sample_batch(describe(tree).signature.required_inputs, device="meta")
    try:
        with torch.random.fork_rng(devices=[]):
            axes = group_axes(trace_channels(module, batch))
    except Exception:  # noqa: BLE001  a class whose control flow reads values
        return None
    probe = FieldProbe(tree)
    described = axes_with_fields(axes, probe, wanted)
    kinds = {axis.kind for options in described.values() for axis in options}
    if not kinds & wanted:
        kinds |= {axis.kind for axis in layer_axes(probe)}
    return frozenset(kinds)
