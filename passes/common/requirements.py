"""Check of a model after a pass has written it."""

from __future__ import annotations

from pathlib import Path


def check_saved_model(folder: Path, device: str) -> None:
    """Check that a written model loads, and that its weights are finite.

    Raises:
        NumericalError: A weight is NaN or infinite.
        ModelError: The folder cannot be opened as a model.
    """
    from compressor.models.checkpoint.finite import check_finite
    from compressor.models.checkpoint.loading import load_module

    check_finite(folder)
    load_module(folder, device)
