"""Branches on whether a mask masks anything, while a class is traced.

Classes such as FSMT leave a mask out where ``mask.any()`` is false, which saves time and changes no
result. A graph has one branch: the one with the mask.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

_ANY = frozenset({torch.any, Tensor.any})
_MARK = "_is_any"


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
