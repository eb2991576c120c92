"""Capabilities that a family does not state: derived from its signature, or from its module.

A derivation needs the signature alone, so that planning can use it without torch. A discoverer
runs or traces the module; it is one function in this package, imported when it is called.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, cast

from compressor.models.capabilities.capability import C, Capability
from compressor.models.capabilities.cuttable_axes import CuttableAxes
from compressor.models.capabilities.embeddings import Embeddings, embeddings_from_signature
from compressor.models.capabilities.linear_groups import LinearGroups
from compressor.models.capabilities.loaded_model import LoadedModel
from compressor.models.capabilities.quantizable_layers import QuantizableLayers
from compressor.models.capabilities.signature import RECORDING_AXES, Signature
from compressor.models.capabilities.training_heads import TrainingHeads, heads_from_signature
from compressor.models.capabilities.valid_positions import ValidPositions

_MASK = "attention_mask"
_DECODER_AXIS = "decoder_tokens"


def _valid_positions(signature: Signature) -> ValidPositions:
    mask = next((spec for spec in signature.inputs if spec.name == _MASK), None)
    if mask is None:
        return ValidPositions()
    names = (spec.name for spec in signature.inputs if spec.shape[-1] == _DECODER_AXIS)
    return ValidPositions(_MASK, mask.shape[-1] in RECORDING_AXES, next(names, None))


def _quantizable_layers(model: LoadedModel) -> QuantizableLayers:
    from compressor.models.capabilities.traced_layers import TracedLayers

    return TracedLayers(model.module, model.batch)


def _cuttable_axes(model: LoadedModel) -> CuttableAxes:
    from compressor.models.capabilities.discovered_axes.discover import discover_axes

    return discover_axes(model)


def _linear_groups(model: LoadedModel) -> LinearGroups | None:
    from compressor.models.capabilities.discovered_groups import discover_linear_groups

    return discover_linear_groups(model.module, model.batch)


DERIVATIONS: Mapping[type[Capability], Callable[[Signature], Capability | None]] = {
    Signature: lambda signature: signature,
    TrainingHeads: heads_from_signature,
    Embeddings: embeddings_from_signature,
    ValidPositions: _valid_positions,
}
DISCOVERERS: Mapping[type[Capability], Callable[[LoadedModel], Capability | None]] = {
    CuttableAxes: _cuttable_axes,
    LinearGroups: _linear_groups,
    QuantizableLayers: _quantizable_layers,
}


def derive(kind: type[C], signature: Signature) -> C | None:
    """Return the capability as it follows from the signature; None if it does not."""
    derivation: Any = DERIVATIONS.get(kind)
    return None if derivation is None else cast("C | None", derivation(signature))


def discover(kind: type[C], model: LoadedModel) -> C | None:
    """Return the capability as it follows from the module; None if it does not."""
    discoverer: Any = DISCOVERERS.get(kind)
    return None if discoverer is None else cast("C | None", discoverer(model))


def is_discoverable(capability: type[Capability]) -> bool:
    """Return True if there is a discoverer, which may succeed once the module is loaded."""
    return capability in DISCOVERERS
