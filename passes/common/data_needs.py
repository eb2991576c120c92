"""Data sets of a training, as a pass declares them; imports no torch."""

from __future__ import annotations

from compressor.engine.contract import DataNeed


def training_needs(
    train: str,
    validation: str | None,
    hard_labels: str | None,
    soft_labels: str | None = None,
    *,
    prefix: str = "",
) -> tuple[DataNeed, ...]:
    """Return the set that a model is trained on, and the one it is evaluated on.

    Args:
        train: Name of the data set to train on.
        validation: Name of the data set to evaluate; it needs labels.
        hard_labels: Setting that trains on labels; None if it trains on soft labels alone.
        soft_labels: Setting that trains on soft labels alone.
        prefix: Path of the fields ``train`` and ``validation`` in the config of the pass.
    """
    field = f"{prefix}train"
    needs = (DataNeed(field, train, labels=hard_labels, unlabelled=soft_labels),)
    if validation is None:
        return needs
    field = f"{prefix}validation"
    return (*needs, DataNeed(field, validation, labels=field, unlabelled=f"{field}: null"))
