"""Checks of data sets and models, before a pass computes anything and after it has written."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from compressor.artifacts.store import Artifact
from compressor.engine.contract import PassContext
from compressor.errors import DataError
from compressor.models.checkpoint.description import ModelDescription, read_description
from compressor.runtimes.session import match_inputs


def check_data(
    parent: Artifact, names: Iterable[str | None], context: PassContext, *, labels: bool = True
) -> None:
    """Check that data sets have samples, labels and the inputs of the parent model.

    Args:
        parent: The model that is run on the data sets.
        names: Names of the data sets; None entries are skipped.
        context: Opens the data sets.
        labels: False if the samples need no labels.

    Raises:
        DataError: A data set does not fit; the message lists every problem of every data set.
    """
    description = read_description(parent.model)
    problems = [
        problem
        for name in dict.fromkeys(names)
        if name
        for problem in _data_problems(description, name, context, labels)
    ]
    if problems:
        raise DataError("\n".join(problems), remedy="name data sets that were made for this model")


def _data_problems(
    description: ModelDescription, name: str, context: PassContext, labels: bool
) -> list[str]:
    dataset = context.data(name)
    if len(dataset) == 0:
        return [f"data set {name!r} is empty"]
    batch = dataset.batch(np.zeros(1, dtype=np.int64))
    problems = []
    if labels and dataset.label_name not in batch:
        problems.append(f"data set {name!r} has no labels")
    inputs = description.signature.inputs
    if unknown := sorted(set(dataset.input_names) - {spec.name for spec in inputs}):
        problems.append(
            f"data set {name!r} has inputs that {description.family.name} does not take: "
            f"{', '.join(unknown)}"
        )
    try:
        match_inputs({key: batch[key] for key in dataset.input_names}, inputs)
    except DataError as error:
        problems.append(f"data set {name!r}: {error.what}")
    return problems


def check_saved_model(folder: Path, device: str) -> None:
    """Check that a written model loads, and that its weights are finite.

    Raises:
        NumericalError: A weight is NaN or infinite.
        ModelError: The folder cannot be opened as a model.
    """
    from compressor.models.checkpoint.loading import load_module
    from compressor.models.checkpoint.safetensors_files import check_finite

    check_finite(folder)
    load_module(folder, device)
