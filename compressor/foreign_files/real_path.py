"""Resolve links in paths that users and foreign files name."""

from __future__ import annotations

import os
from pathlib import Path


def real_path(path: Path) -> Path:
    """Return a path without links; of a link to itself the link.

    ``Path.resolve`` raises RuntimeError for such a link, before Python 3.13.
    """
    return Path(os.path.realpath(path))
