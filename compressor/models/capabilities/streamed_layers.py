"""Decoders whose layers can be loaded and run one at a time."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from compressor.models.capabilities.capability import Capability

MatrixShape = tuple[int, int]
"""Outputs and inputs of a linear layer."""


@dataclass(frozen=True, slots=True)
class StreamedLayers(Capability):
    """The linear layers of a checkpoint that is processed one decoder layer at a time.

    Such a checkpoint may exceed the memory. The sizes are known without its weights.
    """

    label: ClassVar[str] = "decoder layers that load one at a time"
    remedy: ClassVar[str] = "use a causal language model of transformers"

    layers_name: str
    """Module list of decoder layers."""
    layers: int
    """Number of decoder layers."""
    decoder: Mapping[str, MatrixShape]
    """Linear layers of all decoder layers by their full names, in the order of the modules."""
    towers: Mapping[str, MatrixShape]
    """Linear layers of vision and audio towers."""
    head_name: str | None
    """Linear layer that computes the logits; None if the class has none."""
    head: MatrixShape
    """Its outputs and inputs; those of the embedding it is tied to."""
    is_head_tied: bool
    """True if the head shares the weight of the embedding, or there is no head."""
    parameters: Mapping[str, int]
    """Parameters in the ``embedding``, the ``layers``, the ``head`` (0 if tied) and the ``vision``
    tower, and of the whole model as ``all``."""
    one_grid: frozenset[str] = frozenset()
    """Linear layers of the decoder that consumers of packed checkpoints read on one grid: those of
    experts, and all layers of classes that are unpacked while they are read."""
    transposed: frozenset[str] = frozenset()
    """Weights that the float checkpoint holds as [inputs, outputs], as those of GPT-2."""

    @property
    def decoder_weights(self) -> int:
        """Number of weights in the linear layers of all decoder layers."""
        return sum(outputs * inputs for outputs, inputs in self.decoder.values())

    def by_pattern(self) -> dict[str, MatrixShape]:
        """Return the decoder's linear layers, those with one shape in all layers as one entry.

        The number of the layer is ``*`` in its name.
        """
        prefix = f"{self.layers_name}."
        patterns: dict[str, dict[str, MatrixShape]] = {}
        for name, shape in self.decoder.items():
            pattern = prefix + re.sub(r"^\d+", "*", name.removeprefix(prefix))
            patterns.setdefault(pattern, {})[name] = shape
        entries: dict[str, MatrixShape] = {}
        for pattern, shapes in patterns.items():
            same = len({*shapes.values()}) == 1
            entries |= {pattern: next(iter(shapes.values()))} if same else shapes
        return entries
