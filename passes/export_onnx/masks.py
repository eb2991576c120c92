"""Masks while a class is traced: branches on them, and boolean ones in attention.

Classes such as FSMT leave a mask out where ``mask.any()`` is false, which saves time and changes no
result. A graph has one branch: the one with the mask.

Attention is traced as plain products with an additive mask. Classes that hand boolean masks of
their own to a text encoder, as Grounding DINO does, have them added as 0 and 1 there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

_ANY = frozenset({torch.any, Tensor.any})
_ADD = frozenset({torch.add, Tensor.add, Tensor.__add__})
_MARK = "_is_any"
_MASK_DIMENSIONS = 4
"""Batch, heads, queries and keys."""


class AnyIsTrue(TorchFunctionMode):
    """Take the results of ``any`` for true where code branches on them.

    A class for which the other branch is another function differs from torch when it is compared.
    """

    def __torch_function__(
        self,
        function: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Run a function of torch, but for the truth of a result of ``any``."""
        del types
        if function is Tensor.__bool__ and getattr(args[0], _MARK, False):
            return True
        result = function(*args, **(kwargs or {}))
        if function in _ANY:
            setattr(result, _MARK, True)
        return result


class AdditiveMasks(TorchFunctionMode):
    """Add boolean masks [B, N, Q, K] to scores as the implementations of attention take them."""

    def __torch_function__(
        self,
        function: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Run a function of torch; the sum of scores and a boolean mask with an additive mask."""
        del types
        if function in _ADD and _are_scores_and_mask(*args):
            scores_BNQK, mask_BNQK = args
            lowest = torch.finfo(scores_BNQK.dtype).min
            args = (scores_BNQK, (~mask_BNQK).to(scores_BNQK.dtype) * lowest)
        return function(*args, **(kwargs or {}))


def _are_scores_and_mask(*values: Any) -> bool:
    if len(values) != 2 or not all(isinstance(value, Tensor) for value in values):
        return False
    scores, mask = values
    is_mask: bool = mask.dtype == torch.bool and mask.ndim == scores.ndim == _MASK_DIMENSIONS
    return is_mask and bool(scores.is_floating_point())
