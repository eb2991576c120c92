"""Data source ``arrays``: named arrays in .npz and .safetensors files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import Field

from calibration.sources.array_headers import StoredArray, read_array, read_headers
from calibration.sources.arrays import ArrayDataset, draw_indices, draw_problems
from compressor.artifacts.fingerprint import digest_file, digest_json
from compressor.data.contract import (
    DataFacts,
    Dataset,
    DataSource,
    InputFacts,
    SourceConfig,
    SourceContext,
    StarterData,
    StarterInputs,
)
from compressor.errors import DataError

_LABEL = "label"
_NUMBERS = "biuf"
"""NumPy's letters for truth values, integers and floats."""


class ArraysConfig(SourceConfig):
    """Config of the data source ``arrays``."""

    path: str
    """A .npz or .safetensors file, or a folder of such files, whose arrays are joined in the order
    of the names; relative to pipeline.yaml. The first axis of each array is the sample. float64 is
    read as float32."""
    inputs: dict[str, str] | None = None
    """Name of each input of the model and of its array: `{image: x_train}`. By default all arrays
    but the labels are inputs under their own names."""
    label: str = _LABEL
    """Name of the array of labels, integers from 0. By default `label`, if there is one."""
    num_samples: Annotated[int, Field(ge=1)] | None = None
    """Largest number of samples, drawn at random; all samples by default."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Seed of the draw of `num_samples` samples."""


class Arrays(DataSource[ArraysConfig]):
    """Named arrays of NumPy (.npz) or safetensors; the first axis is the sample.

    Nothing in the files is executed: arrays of Python objects are refused.
    """

    name = "arrays"
    Config = ArraysConfig

    def starter(self, model: StarterInputs) -> StarterData | None:
        """Return a file with the arrays of any model; other sources go first."""
        names = frozenset(facts.name for facts in model.inputs)
        files = f"an .npz or .safetensors file with the arrays {', '.join(sorted(names))}"
        return StarterData({"path": "samples.npz"}, names, files, fits_any_model=True)

    def problems(self, config: ArraysConfig, context: SourceContext) -> list[str]:
        """Return missing and damaged files, and arrays that do not fit each other."""
        return [*draw_problems(config), *_file_problems(config, context.base / config.path)]

    def facts(self, config: ArraysConfig, context: SourceContext) -> DataFacts:
        """Return shapes and types from the headers, and the number of classes from the labels."""
        arrays = read_headers(context.base / config.path)
        inputs = _inputs(config, arrays)
        count = arrays[next(iter(inputs.values()))].samples
        label = _label(config, arrays)
        return DataFacts(
            inputs=tuple(
                InputFacts(name, str(_input_dtype(arrays[array])), arrays[array].shape)
                for name, array in inputs.items()
            ),
            has_labels=label is not None,
            num_samples=count if config.num_samples is None else min(count, config.num_samples),
            num_classes=None if label is None else _classes(read_array(arrays[label])),
        )

    def digest(self, config: ArraysConfig, context: SourceContext) -> str:
        """Return a digest of the config, and of the content of the files in their order."""
        files = dict.fromkeys(
            file
            for array in read_headers(context.base / config.path).values()
            for file, _ in array.parts
        )
        return digest_json(
            {
                "version": 1,
                "config": config.model_dump(mode="json", exclude={"path"}),
                "files": [digest_file(file) for file in files],
            }
        )

    def load(self, config: ArraysConfig, context: SourceContext) -> Dataset:
        """Read the arrays, and draw from them.

        Raises:
            DataError: a file is missing or damaged, or the arrays do not fit each other.
        """
        if problems := _file_problems(config, context.base / config.path):
            raise DataError("\n".join(problems))
        stored = read_headers(context.base / config.path)
        inputs, label = _inputs(config, stored), _label(config, stored)
        arrays = {
            name: read_array(stored[array]).astype(_input_dtype(stored[array]), copy=False)
            for name, array in inputs.items()
        }
        if label is not None:
            arrays[_LABEL] = read_array(stored[label]).astype(np.int64)
        count = len(next(iter(arrays.values())))
        if config.num_samples is not None and config.num_samples < count:
            drawn = draw_indices(count, config.num_samples, config.seed)
            arrays = {name: array[drawn] for name, array in arrays.items()}
        return ArrayDataset(arrays, tuple(inputs), None if label is None else _LABEL)


def _file_problems(config: ArraysConfig, path: Path) -> list[str]:
    try:
        arrays = read_headers(path)
    except DataError as error:
        return [error.what]
    return [*_name_problems(config, arrays), *_length_problems(config, arrays)]


def _input_dtype(array: StoredArray) -> np.dtype[Any]:
    """Return the dtype in which an input is read: float64 becomes float32, as weights are."""
    dtype = np.dtype(array.dtype)
    return np.dtype(np.float32) if dtype == np.float64 else dtype


def _label(config: ArraysConfig, arrays: dict[str, StoredArray]) -> str | None:
    return config.label if config.label in arrays else None


def _inputs(config: ArraysConfig, arrays: dict[str, StoredArray]) -> dict[str, str]:
    """Return the array of each input."""
    if config.inputs is not None:
        return config.inputs
    return {name: name for name in arrays if name != config.label}


def _name_problems(config: ArraysConfig, arrays: dict[str, StoredArray]) -> list[str]:
    """Return arrays that are named and not there, inputs that are no numbers, and wrong labels."""
    wanted = list((config.inputs or {}).values())
    if config.label != _LABEL:
        wanted.append(config.label)
    problems = [
        f"{config.path} has no array {name!r}; it has {', '.join(arrays)}"
        for name in wanted
        if name not in arrays
    ]
    problems += [
        f"{config.path}: {name!r} holds {arrays[name].dtype}, not numbers"
        + ("" if config.inputs else "; `inputs` names the arrays that are read")
        for name in _inputs(config, arrays).values()
        if name in arrays and arrays[name].kind not in _NUMBERS
    ]
    label = arrays.get(config.label)
    if label is not None and label.kind not in "iu":
        problems.append(
            f"{config.path}: the labels {config.label!r} are {label.dtype}, not integers"
        )
    if label is not None and label.kind == "i":
        values = read_array(label)
        if values.size and values.min() < 0:
            problems.append(
                f"{config.path}: the labels {config.label!r} have the value {values.min()}; "
                "classes are counted from 0"
            )
    if not problems and not _inputs(config, arrays):
        problems.append(f"{config.path} has no arrays beside the labels {config.label!r}")
    return problems


def _length_problems(config: ArraysConfig, arrays: dict[str, StoredArray]) -> list[str]:
    """Return a line if the arrays that are used have no samples, or not equally many."""
    label = _label(config, arrays)
    used = [*_inputs(config, arrays).values(), *([label] if label else [])]
    counts = {name: arrays[name].samples for name in used if name in arrays}
    if len(set(counts.values())) > 1:
        numbers = ", ".join(f"{name} {count}" for name, count in counts.items())
        return [f"{config.path}: the arrays have different numbers of samples: {numbers}"]
    if 0 in counts.values():
        return [f"{config.path} has no samples"]
    return []


def _classes(labels: np.ndarray[tuple[int, ...], np.dtype[np.int64]]) -> int:
    return int(labels.max()) + 1
