"""A module with a batch, from which capabilities are discovered."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A module in eval mode, and a batch to run or trace it with."""

    module: nn.Module
    batch: Mapping[str, Tensor]
    """Inputs by the names of ``forward``'s arguments."""
