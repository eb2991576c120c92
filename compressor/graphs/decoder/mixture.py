"""Experts of a decoder layer: what the graph computes, as values.

Shapes: N tokens, E experts, K experts of a token, H hidden, M hidden of an expert.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from compressor.graphs.decoder.activations import Activation
from compressor.models.families.transformers.experts.layout import ExpertLayout


@dataclass(frozen=True, slots=True)
class ExpertGroups:
    """Groups of experts, of which a token reaches some only (DeepSeek-V2, arXiv:2405.04434)."""

    count: int
    kept: int
    """Groups that the experts of a token are taken from."""
    rank: Literal["max", "top 2"]
    """Rank of a group: its best score, or the sum of its two best."""


@dataclass(frozen=True, slots=True)
class Router:
    """Choice of K experts for each token, and their shares in the result.

    Names are relative to the layer.
    """

    weight: str
    """Tensor [E, H]."""
    bias: str | None
    """Tensor [E] that is added to the logits."""
    experts: int
    chosen: int
    """Experts K of a token."""
    scores: Literal["softmax", "sigmoid", "sparse mixer"]
    """Function of the logits. ``sparse mixer`` takes one expert after the other, with a softmax
    over the logits close to the largest one (SparseMixer, arXiv:2409.12136)."""
    correction: str | None = None
    """Tensor of E values that are added to the scores for the choice alone."""
    groups: ExpertGroups | None = None
    is_normalized: bool = False
    """True if the shares of a token are divided by their sum."""
    factor: float = 1.0
    """Factor of all shares."""
    jitter: float = 0.0
    """Half of the relative distance from the largest logit that ``sparse mixer`` reads."""

    def below(self, module: str) -> Router:
        """Return the router with names relative to the module that holds this one's."""
        tensors = (self.weight, self.bias, self.correction)
        weight, bias, correction = (name and f"{module}.{name}" for name in tensors)
        assert weight is not None  # noqa: S101
        return replace(self, weight=weight, bias=bias, correction=correction)


@dataclass(frozen=True, slots=True)
class ClampedGate:
    """Gate of GPT-OSS: min(g, c) · sigmoid(α · min(g, c)) · (clip(u, -c, c) + 1)."""

    alpha: float
    limit: float


@dataclass(frozen=True, slots=True)
class Experts:
    """Feed-forward networks of one shape, of which each token passes some."""

    name: str
    """Module, relative to the layer."""
    layout: ExpertLayout
    width: int
    """Hidden M of an expert."""
    activation: Activation | ClampedGate
