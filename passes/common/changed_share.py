"""Part of a model that a pass quantizes: reported, warned about, and refused if it is too small.

Planning imports this module, so it imports torch only where a module is counted.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from compressor.config.record import LeftOutOfIds
from compressor.errors import RequirementError

if TYPE_CHECKING:
    from torch import Tensor, nn

MinShare = Annotated[float, Field(ge=0, le=1), LeftOutOfIds()]
"""Smallest share of the multiplied weights that a step must quantize."""
DEFAULT_MIN_SHARE = 0.1
_WARN_BELOW = 0.5
_LISTED = 5


@dataclass(frozen=True, slots=True)
class ChangedShare:
    """Numbers of weights, of matrices and kernels alone; vectors such as biases do not count."""

    changed: int
    """Weights that the pass quantizes."""
    multiplied: int
    """Weights of matrix products and convolutions, quantized or not."""
    total: int
    """All weights, lookup tables included."""
    macs: float | None = None
    """Part of the multiply-accumulates in quantized layers; None if not known."""
    largest_float: tuple[tuple[str, int], ...] = ()
    """The largest tensors that stay in float, with their numbers of weights."""

    @property
    def of_all(self) -> float:
        """Quantized part of all weights."""
        return self.changed / max(self.total, 1)

    @property
    def of_multiplied(self) -> float:
        """Quantized part of the weights that are multiplied; embeddings do not count as such."""
        return min(1.0, self.changed / max(self.multiplied, 1))

    def summary(self) -> dict[str, Any]:
        """Return the shares for the manifest."""
        shares = {"quantized_share_of_weights": round(self.of_all, 4)}
        if self.macs is not None:
            shares["quantized_share_of_macs"] = round(self.macs, 4)
        return shares

    def warn(self, note: Callable[[str], None]) -> None:
        """Note the share if less than half of the weights are quantized."""
        if self.of_all < _WARN_BELOW:
            note(f"only {self._text()}")

    def check(self, min_share: float, remedy: str) -> None:
        """Check that enough of the model is quantized.

        Args:
            min_share: smallest part of the multiplied weights.
            remedy: what else quantizes the model; the field `min_share` is named too.

        Raises:
            RequirementError: less is quantized.
        """
        if self.of_multiplied < min_share:
            raise RequirementError(
                f"only {self._text()}; `min_share` requires {min_share:.0%} of the weights that "
                "are multiplied",
                remedy=f"{remedy}; or set `min_share: 0` to quantize what there is",
            )

    def _text(self) -> str:
        text = f"{self.of_all:.1%} of the weights are quantized"
        if self.macs is not None:
            text += f" ({self.macs:.1%} of the MACs)"
        if self.largest_float:
            tensors = ", ".join(f"{name} ({count:,})" for name, count in self.largest_float)
            text += f"; the largest that stay in float are {tensors}"
        return text


def count_share(
    module: nn.Module,
    layers: Collection[str],
    tables: Collection[str] = (),
    batch: Mapping[str, Tensor] | None = None,
) -> ChangedShare:
    """Count the share of a module that is quantized.

    Args:
        module: the float module, whose parameters need no gradients.
        layers: names of the layers that are quantized.
        tables: names of the embedding tables that are quantized.
        batch: inputs on which the MACs are counted; None to leave them out.
    """
    from torch import nn

    quantized = {f"{name}.weight" for name in (*layers, *tables)}
    lookups = {
        f"{name}.weight"
        for name, layer in module.named_modules()
        if isinstance(layer, nn.Embedding)
    }
    users: dict[int, set[str]] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        users.setdefault(id(parameter), set()).add(name)
    counts = {
        name: parameter.numel()
        for name, parameter in module.named_parameters()
        if parameter.ndim > 1
    }
    names = {name: users[id(module.get_parameter(name))] for name in counts}
    changed = sum(count for name, count in counts.items() if names[name] & quantized)
    multiplied = sum(
        count for name, count in counts.items() if not names[name] <= lookups or name in quantized
    )
    floats = [(name, count) for name, count in counts.items() if not names[name] & quantized]
    return ChangedShare(
        changed=changed,
        multiplied=multiplied,
        total=sum(counts.values()),
        macs=None if batch is None else _share_of_macs(module, layers, batch),
        largest_float=tuple(sorted(floats, key=lambda item: -item[1])[:_LISTED]),
    )


def _share_of_macs(
    module: nn.Module, layers: Collection[str], batch: Mapping[str, Tensor]
) -> float | None:
    """Return the part of the MACs of one forward pass that the layers compute; None for no MACs."""
    from compressor.models.capabilities.flop_counting import count_flops

    with count_flops(module) as counter:
        module(**batch)
    total = counter.get_total_flops()
    root = type(module).__name__
    by_module = counter.get_flop_counts()
    changed = sum(sum(by_module.get(f"{root}.{name}", {}).values()) for name in layers)
    return changed / total if total else None
