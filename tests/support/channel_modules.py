"""Small modules whose channels depend on each other in one way each."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

IMAGE = (2, 3, 8, 8)
TOKENS = (2, 5, 12)


class Residual(nn.Module):
    """A stem and a residual block, all with batch norms."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.stem_norm = nn.BatchNorm2d(8)
        self.inner = nn.Conv2d(8, 6, 1)
        self.inner_norm = nn.BatchNorm2d(6)
        self.outer = nn.Conv2d(6, 8, 1)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits."""
        x = self.stem_norm(self.stem(x)).relu()
        x = x + self.outer(self.inner_norm(self.inner(x)).relu())
        return self.head(x.mean((2, 3)))


class Squeezed(nn.Module):
    """A depthwise convolution, gated by a squeeze-and-excitation block."""

    def __init__(self) -> None:
        super().__init__()
        self.expand = nn.Conv2d(3, 8, 1)
        self.filter = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.squeeze = nn.Conv2d(8, 4, 1)
        self.excite = nn.Conv2d(4, 8, 1)
        self.project = nn.Conv2d(8, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return an image."""
        x = functional.hardswish(self.filter(self.expand(x)))
        pooled = functional.adaptive_avg_pool2d(x, 1)
        gate = self.excite(self.squeeze(pooled).relu())
        return self.project(x * gate.sigmoid())


class Concatenated(nn.Module):
    """Two branches that one layer reads side by side, and a third that joins one of them."""

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Conv2d(3, 4, 1)
        self.right = nn.Conv2d(3, 6, 1)
        self.reader = nn.Conv2d(10, 5, 1)
        self.other = nn.Conv2d(6, 5, 1)
        self.last = nn.Conv2d(5, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return an image."""
        left, right = self.left(x).relu(), self.right(x).relu()
        return self.last(self.reader(torch.cat([left, right], 1)) + self.other(right))


class Flattened(nn.Module):
    """Channels that a linear layer reads at every position of the image."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Conv2d(3, 4, 4, stride=4)
        self.reader = nn.Linear(4 * 4, 6)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits."""
        return self.head(self.reader(self.features(x).relu().flatten(1)).relu())


class Grouped(nn.Module):
    """A grouped convolution and a group norm: whole groups are the units."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 12, 1)
        self.grouped = nn.Conv2d(12, 8, 3, padding=1, groups=4)
        self.norm = nn.GroupNorm(4, 8)
        self.last = nn.Conv2d(8, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return an image."""
        return self.last(self.norm(self.grouped(self.stem(x).relu())).relu())


class Fused(nn.Module):
    """A gated MLP with one matrix for gate and up, between layer norms."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(12)
        self.gate_up = nn.Linear(12, 20)
        self.down = nn.Linear(10, 12)
        self.head = nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits of each token."""
        gate, up = self.gate_up(self.norm(x)).chunk(2, -1)
        return self.head(x + self.down(functional.silu(gate) * up))


class Attending(nn.Module):
    """Attention with two key heads for four query heads, and a norm in each head."""

    width = 4

    def __init__(self) -> None:
        super().__init__()
        self.query_key_value = nn.Linear(12, 8 * self.width)
        self.norm = nn.LayerNorm(self.width)
        self.out = nn.Linear(4 * self.width, 12)

    def forward(self, x: Tensor) -> Tensor:
        """Return tokens."""
        heads = self.query_key_value.out_features // (2 * self.width)
        parts = (heads * self.width, heads * self.width // 2, heads * self.width // 2)
        query, key, value = (
            part.unflatten(-1, (-1, self.width)).transpose(1, 2)
            for part in self.query_key_value(x).split(parts, -1)
        )
        query = self.norm(query)
        key, value = (part.repeat_interleave(2, 1) for part in (key, value))
        mixed = functional.scaled_dot_product_attention(query, key, value)
        return x + self.out(mixed.transpose(1, 2).flatten(2))


MODULES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "residual": (Residual, IMAGE),
    "squeezed": (Squeezed, IMAGE),
    "concatenated": (Concatenated, IMAGE),
    "flattened": (Flattened, IMAGE),
    "grouped": (Grouped, IMAGE),
    "fused": (Fused, TOKENS),
    "attending": (Attending, TOKENS),
}


def create(name: str) -> tuple[nn.Module, dict[str, Tensor]]:
    """Return a module in eval mode, with norms that matter, and a batch for it."""
    torch.manual_seed(0)
    build, shape = MODULES[name]
    module = build().eval()
    for tensor in module.state_dict().values():
        if tensor.is_floating_point() and tensor.ndim == 1:
            tensor.add_(torch.rand_like(tensor))
    return module, {"x": torch.randn(shape)}
