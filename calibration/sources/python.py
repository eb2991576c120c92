"""The data source ``python``: the user's own code, off unless it is allowed."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from calibration.sources.arrays import ArrayDataset
from compressor.artifacts.fingerprint import digest_file, digest_json
from compressor.data.contract import Dataset, DataSource, SourceConfig, SourceContext
from compressor.errors import DataError, UsageError


class PythonConfig(SourceConfig):
    """Which function of which file."""

    path: str
    """A Python file; relative to pipeline.yaml. It runs with your rights: only with `--allow-code`."""
    function: str = "load"
    """A function in it, called with `arguments`; it returns a Dataset, or a mapping of equally long NumPy arrays."""
    arguments: dict[str, Any] = {}  # noqa: RUF012 - pydantic copies it
    """Keyword arguments of the function."""
    label: str = "label"
    """The array that holds the answer, if there is one of that name; all others are inputs."""
    num_samples: int | None = None
    """At most so many, from the start."""


class Python(DataSource[PythonConfig]):
    """Samples from a function of yours. The digest covers the file's source, and what it returns."""

    name = "python"
    Config = PythonConfig

    def problems(self, config: PythonConfig, context: SourceContext) -> list[str]:
        """A missing file, or code that was not allowed."""
        found = []
        if not (context.base / config.path).is_file():
            found.append(f"{config.path} is not a file (looked below {context.base})")
        if not context.allow_code:
            found.append(f"runs {config.path}, which is code: allow it with --allow-code")
        return found

    def digest(self, config: PythonConfig, context: SourceContext) -> str:
        """Over the file's source and the config; what the code reads besides should be among its arguments."""
        code = digest_file(context.base / config.path)
        return digest_json(
            {"version": 1, "config": config.model_dump(mode="json", exclude={"path"}), "code": code}
        )

    def load(self, config: PythonConfig, context: SourceContext) -> Dataset:
        """Run the function.

        Raises:
            UsageError: code is not allowed.
            DataError: there is no such function, it failed, or it returned something else.
        """
        if not context.allow_code:
            raise UsageError(f"{config.path} is code", remedy="allow it with --allow-code")
        file = context.base / config.path
        result = _called(file, config)
        if isinstance(result, Dataset):
            return result
        if not isinstance(result, Mapping) or not all(
            isinstance(array, np.ndarray) for array in result.values()
        ):
            raise DataError(
                f"{file}: {config.function} returned {type(result).__name__}, not a Dataset or arrays by name"
            )
        lengths = {name: len(array) for name, array in result.items()}
        if len(set(lengths.values())) != 1 or 0 in lengths.values():
            raise DataError(f"{file}: the arrays are empty or not equally long: {lengths}")
        arrays = {name: array[: config.num_samples] for name, array in result.items()}
        label = config.label if config.label in arrays else None
        return ArrayDataset(arrays, tuple(name for name in arrays if name != label), label)


def _called(file: Path, config: PythonConfig) -> Any:
    spec = importlib.util.spec_from_file_location(f"user_data_{file.stem}", file)
    if spec is None or spec.loader is None:
        raise DataError(f"{file} is no Python file")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        return getattr(module, config.function)(**config.arguments)
    except Exception as error:  # whatever the user's code throws is the user's to read
        where = f"{file}: {config.function}"
        raise DataError(f"{where} failed: {type(error).__name__}: {error}") from error
