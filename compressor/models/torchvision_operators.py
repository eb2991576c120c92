"""Operators that torchvision expects, where its native library does not load.

The torchvision of the package registry is built for the torch of that registry. Beside another
build of torch, such as the one for the CPU alone, its library does not load, and importing it
fails, and with it everything that imports it: timm, and transformers.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import cache
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

_LIBRARY = "torchvision"

_OPERATORS = tuple(
    f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor" for name in ("nms", "qnms")
)
"""Operators for which torchvision registers shapes when it is imported."""


@cache
def declare_missing_operators() -> Any:
    """Declare the operators without an implementation, where they are missing.

    Models without them then work as usual. To be called before torchvision is imported, which
    ``declare_on_import`` sees to.

    Returns:
        The library of declarations, which must be kept; None where nothing is missing.
    """
    spec = None if _LIBRARY in sys.modules else PathFinder.find_spec(_LIBRARY)
    if spec is None or spec.origin is None or _loads(Path(spec.origin).parent):
        return None
    import torch

    library = torch.library.Library(_LIBRARY, "DEF")  # type: ignore[no-untyped-call]
    for operator in _OPERATORS:
        library.define(operator)  # type: ignore[no-untyped-call]
    return library


def declare_on_import() -> None:
    """Declare missing operators when torchvision is imported, by whomever; free until then."""
    if not any(isinstance(finder, _DeclareFirst) for finder in sys.meta_path):
        sys.meta_path.insert(0, _DeclareFirst())


class _DeclareFirst(MetaPathFinder):
    """Finds nothing, and comes before the finders of Python."""

    def find_spec(
        self,
        fullname: str,
        _path: Sequence[str] | None,
        _target: ModuleType | None = None,
    ) -> ModuleSpec | None:
        """Declare the operators if torchvision is imported."""
        if fullname == _LIBRARY:
            declare_missing_operators()
        return None


def _loads(folder: Path) -> bool:
    """Return True if the native library in a folder loads."""
    import torch

    for file in [*folder.glob("_C*.so"), *folder.glob("_C*.pyd")]:
        try:
            torch.ops.load_library(file)  # type: ignore[no-untyped-call]
        except (ImportError, OSError):
            return False
    return hasattr(torch.ops.torchvision, "nms")
