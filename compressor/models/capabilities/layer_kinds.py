"""Kinds of layers that single config fields of passes apply to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from compressor.models.capabilities.capability import Capability


@dataclass(frozen=True, slots=True)
class LayerKinds(Capability):
    """Kinds of layers in a model, where its family states them.

    A plan builds no module, and refuses fields without effect by these statements. For models of
    other families such fields are refused once the module is loaded.
    """

    label: ClassVar[str] = "stated kinds of layers"
    remedy: ClassVar[str] = "return them from the family's `capabilities`"

    batch_norms: bool
    """True if the module has batch normalizations."""
    embedding_tables: bool
    """True if the module has embedding tables whose weights are used for lookups alone."""
