"""MNN's converter, in a process of its own: ``python -m passes.export_mnn.converter IN OUT …``.

The converter's command line and the module ``MNN.tools`` install a logging package with whatever
`pip` is on PATH, and send the arguments and the sizes of models to a server. The compiled function
below them does neither, and is called alone.
"""

from __future__ import annotations

import sys
from typing import Any

_tools: Any = __import__("_tools")


def main() -> None:
    """Convert an ONNX file; further arguments are the converter's."""
    graph, file, *options = sys.argv[1:]
    _tools.mnnconvert(
        [
            *("mnnconvert", "-f", "ONNX", "--modelFile", graph, "--MNNModel", file),
            *("--bizCode", "autoglm-compress", *options),
        ]
    )


if __name__ == "__main__":
    main()
