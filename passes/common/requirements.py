"""Whether data sets fit a model, asked before anything is computed."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from compressor.artifacts.store import Artifact
from compressor.config import discovery
from compressor.config.record import Record
from compressor.engine.contract import PassContext
from compressor.errors import DataError
from compressor.models.checkpoint.loading import read_description
from compressor.models.contract import Family
from compressor.runtimes.session import match_inputs


def check_data(
    parent: Artifact, names: Iterable[str | None], context: PassContext, *, labels: bool = True
) -> None:
    """Each named set has samples, labels where they are wanted, and the inputs of the parent model; None names no set.

    Raises:
        DataError: one does not; all that is wrong with all of them.
    """
    family_name, config = read_description(parent.model)
    family: Family[Any] = discovery.load(discovery.FAMILIES, family_name)
    problems = [
        problem
        for name in dict.fromkeys(names)
        if name
        for problem in _problems(family, config, name, context, labels)
    ]
    if problems:
        raise DataError("\n".join(problems), remedy="name data sets that were made for this model")


def _problems(
    family: Family[Any], config: Record, name: str, context: PassContext, labels: bool
) -> list[str]:
    dataset = context.data(name)
    if len(dataset) == 0:
        return [f"data set {name!r} is empty"]
    batch = dataset.batch(np.zeros(1, dtype=np.int64))
    problems = []
    if labels and dataset.label_name not in batch:
        problems.append(f"data set {name!r} has no labels")
    inputs = family.signature(config).inputs
    if unknown := sorted(set(dataset.input_names) - {spec.name for spec in inputs}):
        problems.append(
            f"data set {name!r} has inputs that {family.name} does not take: {', '.join(unknown)}"
        )
    try:
        match_inputs({key: batch[key] for key in dataset.input_names}, inputs)
    except DataError as error:
        problems.append(f"data set {name!r}: {error.what}")
    return problems
