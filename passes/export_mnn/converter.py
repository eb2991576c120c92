"""MNN's converter, in a process of its own: ``python -m passes.export_mnn.converter OPTION …``.

The converter's command line and the module ``MNN.tools`` install a logging package with whatever
`pip` is on PATH, and send the arguments and the sizes of models to a server. The compiled function
below them does neither, and is called alone.
"""

from __future__ import annotations

import sys
from typing import Any

_tools: Any = __import__("_tools")


def main() -> None:
    """Convert a file, or list operators; the arguments are the converter's."""
    _tools.mnnconvert(["mnnconvert", "--bizCode", "autoglm-compress", *sys.argv[1:]])


if __name__ == "__main__":
    main()
