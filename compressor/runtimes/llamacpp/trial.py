"""A trial of a GGUF file: load it and compute one token; its path is read from stdin.

An error that llama.cpp reports is no finding: whoever opens the file next gets it too.
"""

from __future__ import annotations

import sys
from contextlib import suppress
from pathlib import Path

import numpy as np

from compressor.errors import ModelError, PassError
from compressor.foreign_files.trials import limit_resources
from compressor.runtimes.llamacpp.model import LlamaCppModel


def main() -> None:
    """Run the trial."""
    limit_resources()
    with suppress(ModelError, PassError):
        model = LlamaCppModel(Path(sys.stdin.read()), threads=1)
        model.logits([np.zeros(1, np.int64)])
        model.close()


if __name__ == "__main__":
    main()
