"""Variable sizes where code takes the length of a tensor while it is traced.

Python's ``len`` returns a number, so ``torch.export`` takes the size of a tensor's first dimension,
which is the batch, for that of the sample. Some detectors of transformers and much code of users
compute ``len(tensor)``; ``tensor.shape[0]`` stays variable.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

from torch import Tensor, nn

_NAME = "len"


def _length(value: Any) -> Any:
    """Return the size of a tensor's first dimension, and the length of anything else."""
    return value.shape[0] if isinstance(value, Tensor) and value.ndim else len(value)


@contextmanager
def symbolic_lengths(module: nn.Module) -> Iterator[None]:
    """Let the files that define a module's classes compute ``len`` of tensors as ``shape[0]``.

    Classes of torch are left alone, and files with a function of their own called ``len``.
    """
    names = {cls.__module__ for part in module.modules() for cls in type(part).__mro__}
    files = [sys.modules[name] for name in sorted(names) if name in sys.modules]
    own = [
        file
        for file in files
        if file.__name__.partition(".")[0] not in {"torch", "builtins"} and _NAME not in vars(file)
    ]
    with ExitStack() as stack:
        for file in own:
            stack.enter_context(patch.object(file, _NAME, _length, create=True))
        yield
