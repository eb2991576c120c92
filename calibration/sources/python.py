"""Data source ``python``: samples from a function of the user's, if code is allowed."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from calibration.sources.arrays import ArrayDataset
from compressor.artifacts.fingerprint import digest_file, digest_json
from compressor.data.contract import (
    Dataset,
    DataSource,
    SourceConfig,
    SourceContext,
    StarterData,
    StarterInputs,
)
from compressor.errors import DataError, UsageError

_LABEL = "label"


class PythonConfig(SourceConfig):
    """Config of the data source ``python``."""

    path: str
    """A Python file; relative to pipeline.yaml. It runs with your permissions, and only with
    `--allow-code`."""
    function: str = "load"
    """Name of a function in the file. It is called with `arguments`, and returns a `Dataset`, or a
    mapping of names to NumPy arrays of equal length."""
    arguments: dict[str, Any] = {}  # noqa: RUF012 - pydantic copies it
    """Keyword arguments of the function."""
    label: str = _LABEL
    """Name of the array of labels; the other arrays are inputs. By default `label`, if the function
    returns an array of this name."""
    num_samples: int | None = None
    """Largest number of samples, from the start of the arrays; all samples by default."""


class Python(DataSource[PythonConfig]):
    """Samples from a Python function.

    The digest covers the file's source and the arguments, but not what the function reads: pass a
    version or a digest of such files as an argument.
    """

    name = "python"
    Config = PythonConfig

    def starter(self, model: StarterInputs) -> StarterData | None:
        """Return a function of the user's, which can feed any model."""
        names = frozenset(facts.name for facts in model.inputs)
        files = f"Python with a function `load` that returns the arrays {', '.join(sorted(names))}"
        return StarterData({"path": "samples.py"}, names, files, needs_code=True)

    def problems(self, config: PythonConfig, context: SourceContext) -> list[str]:
        """Return a missing file, and code that is not allowed."""
        problems = []
        if not (context.base / config.path).is_file():
            problems.append(f"{config.path} is not a file (looked below {context.base})")
        elif Path(config.path).suffix != ".py":
            problems.append(f"{config.path} is not a Python file: its name does not end in .py")
        if not context.allow_code:
            problems.append(f"runs {config.path}, which is code: allow it with --allow-code")
        return problems

    def digest(self, config: PythonConfig, context: SourceContext) -> str:
        """Return a digest of the file's source and the config."""
        code = digest_file(context.base / config.path)
        return digest_json(
            {"version": 1, "config": config.model_dump(mode="json", exclude={"path"}), "code": code}
        )

    def load(self, config: PythonConfig, context: SourceContext) -> Dataset:
        """Call the function.

        Raises:
            UsageError: code is not allowed.
            DataError: the function does not exist, fails, or returns something else.
        """
        if not context.allow_code:
            raise UsageError(f"{config.path} is code", remedy="allow it with --allow-code")
        file = context.base / config.path
        result = _call_function(file, config)
        if isinstance(result, Dataset):
            return result
        if not isinstance(result, Mapping) or not all(
            isinstance(array, np.ndarray) for array in result.values()
        ):
            raise DataError(
                f"{file}: {config.function} returned {type(result).__name__}, "
                "not a Dataset or a mapping of names to arrays"
            )
        lengths = {name: len(array) for name, array in result.items()}
        if len(set(lengths.values())) != 1 or 0 in lengths.values():
            raise DataError(f"{file}: the arrays are empty or not equally long: {lengths}")
        if config.label not in result and config.label != _LABEL:
            raise DataError(
                f"{file}: {config.function} returned no array {config.label!r}",
                remedy=f"set `label` to one of {', '.join(result)}, or leave it out",
            )
        arrays = {name: array[: config.num_samples] for name, array in result.items()}
        label = config.label if config.label in arrays else None
        return ArrayDataset(arrays, tuple(name for name in arrays if name != label), label)


def _call_function(file: Path, config: PythonConfig) -> Any:
    """Import the file, call the function, and return its result.

    Raises:
        DataError: the file cannot be imported, or the function raises an exception.
    """
    spec = importlib.util.spec_from_file_location(f"user_data_{file.stem}", file)
    if spec is None or spec.loader is None:
        raise DataError(f"{file} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        return getattr(module, config.function)(**config.arguments)
    except Exception as error:  # The user's code may raise anything; its message is passed on.
        raise DataError(
            f"{file}: {config.function} failed: {type(error).__name__}: {error}"
        ) from error
