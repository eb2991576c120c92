"""Linear layers that read the same input, and the layers into which a scale of it folds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from compressor.models.capabilities.capability import Capability


@dataclass(frozen=True, slots=True)
class Source:
    """The layer before a site, into which a scale of the site's input folds.

    Dividing the channels there and multiplying the weights of all readers by the same factors does
    not change the model's output. It is AutoAWQ's ``prev_op``, llm-compressor's ``smooth_layer``.
    """

    module: str
    """Name in the block."""
    kind: Literal["norm", "rows"]
    """``norm``: the weight of a norm, and its bias. ``rows``: rows of a linear layer, and their
    biases."""
    offset: float = 0.0
    """Value that the norm adds to its weight."""
    repeats: int = 1
    """Number of input channels in turn, in blocks of ``block``, that come from the same row, or the
    same value of a norm: query heads that share a value head, or a norm over the width of a
    head."""
    block: int = 1
    """Channels of a block that repeats: the width of a head."""
    rows: tuple[int, ...] = ()
    """Rows of a linear layer that compute the channels, in the channels' order. Empty for its last
    rows: all of them, or the values of a fused projection that end it."""
    other_readers: tuple[tuple[str, int], ...] = ()
    """Linear layers beside the site's that read the same channels, with the first of their inputs
    that does; their weights are multiplied too."""


@dataclass(frozen=True, slots=True)
class Routing:
    """Expert of a site: its linear layers read only the tokens that a router sends to it."""

    module: str
    """Module in the block that holds the experts. After a forward pass its ``token_indices`` list
    the tokens of each expert."""
    expert: int
    stage: int
    """Position of the site among those of its expert. Sites of one stage do not depend on each
    other."""


@dataclass(frozen=True, slots=True)
class Site:
    """Linear layers of a block that read the same input."""

    name: str
    linears: tuple[str, ...]
    """Names in the block."""
    source: Source | None = None
    """None if no scale folds: before the site is another function, or a residual stream."""
    block: str | None = None
    """Module whose output is that of the site: its only linear layer is the module's last one."""
    stream: str | None = None
    """Module whose first input is the residual stream that the output is added to unchanged."""
    with_weights: bool = False
    """True if ``block`` returns a tuple: its output, and attention weights."""
    routing: Routing | None = None
    """None if every token reaches the site."""


@dataclass(frozen=True, slots=True)
class Block:
    """A module whose sites are quantized in turn."""

    name: str
    """Name of the module; empty for the whole model."""
    sites: tuple[Site, ...]
    """Sites in the order of computation."""

    def full(self, name: str) -> str:
        """Return the name in the model of a name in the block."""
        return f"{self.name}.{name}" if self.name else name


@dataclass(frozen=True, slots=True)
class LinearGroups(Capability):
    """The linear layers of a model, grouped by their input.

    ``awq`` rounds one block after another, and within it one site after another; it chooses one
    scale per input channel of a site and folds its inverse into the site's source.

    Families may state them; otherwise they are discovered from the module
    (``discovered_groups.py``).
    """

    label: ClassVar[str] = "foldable linear groups"
    remedy: ClassVar[str] = (
        "use a model with linear layers (torch.nn.Linear) that its `forward` calls as modules"
    )

    blocks: tuple[Block, ...]
    """Blocks in the order of computation."""
