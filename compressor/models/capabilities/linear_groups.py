"""Linear layers that read the same input, and the layers into which a scale of it folds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from compressor.models.capabilities.capability import Capability


@dataclass(frozen=True, slots=True)
class Source:
    """What makes an input, such that dividing its channels there and multiplying them in the weights changes nothing."""

    module: str
    """In the block."""
    kind: Literal["norm", "rows"]
    """The weight of a norm, or the last rows of a linear layer (all of them, or of a fused one its second part)."""
    offset: float = 0.0
    """What the norm adds to its weight."""
    repeats: int = 1
    """How many channels in turn come from the same row, in blocks of ``block``: heads that share a value head."""
    block: int = 1
    others: tuple[tuple[str, int], ...] = ()
    """Linear layers beside the site's that read it too, and the first of their inputs that does: their weights are multiplied."""


@dataclass(frozen=True, slots=True)
class Site:
    """Linear layers of a block that read the same input."""

    name: str
    linears: tuple[str, ...]
    source: Source | None = None
    """None where nothing before it takes up a scale: another function, or a stream that others read too."""
    block: str | None = None
    """The module whose result is that of this site, its only linear layer coming last."""
    stream: str | None = None
    """The module whose first input is what that result is added to, as it is."""
    with_weights: bool = False
    """Whether that module hands out the attention's weights beside it."""


@dataclass(frozen=True, slots=True)
class Block:
    """A part of a model whose sites are rounded one after another."""

    name: str
    """Of its module; empty for the model itself."""
    sites: tuple[Site, ...]
    """In the order in which they are computed."""

    def full(self, name: str) -> str:
        """A name in the block as one in the model."""
        return f"{self.name}.{name}" if self.name else name


@dataclass(frozen=True, slots=True)
class LinearGroups(Capability):
    """The linear layers of a model, grouped by their input.

    ``awq`` rounds one block after another, and within it one site after another; it chooses one
    scale per input channel of a site and folds its inverse into the site's source.
    """

    label: ClassVar[str] = "foldable linear groups"
    remedy: ClassVar[str] = (
        "return them from the family's `capabilities`, as "
        "compressor/models/families/autoglm_phone/linears.py does"
    )

    blocks: tuple[Block, ...]
    """In the order of computation."""
