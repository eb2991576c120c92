"""Data source ``random``: random inputs of the shapes and dtypes that a model takes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import Field

from compressor.artifacts.fingerprint import digest_json
from compressor.data.contract import (
    Batch,
    DataFacts,
    Dataset,
    DataSource,
    InputFacts,
    SourceConfig,
    SourceContext,
)
from compressor.errors import CompressError, DataError
from compressor.models.capabilities.signature import REST, InputSpec
from compressor.runtimes.formats import recognize_model

_KINDS = {"bool": "b", "float16": "f", "float32": "f", "float64": "f"}
_INTEGERS = {f"{sign}int{bits}": f"{sign}int" for sign in ("", "u") for bits in (8, 16, 32, 64)}
_DEFAULT_INTEGERS = (0, 1)

_NOTE = "the source `random` gives latency alone: nothing about accuracy can be told from it"

Size = Annotated[int, Field(ge=1)]


class RandomConfig(SourceConfig):
    """Config of the data source ``random``."""

    model: str
    """The model whose inputs are made: an ONNX file, an artifact, or a model's folder; relative to
    pipeline.yaml."""
    dimensions: dict[str, Size] = {}  # noqa: RUF012 - pydantic copies it
    """Sizes of the dimensions that vary, by their name: `{height: 640, width: 640}`. One without a
    name is called by its input and axis: `{x.2: 640}`. The batch needs none."""
    shapes: dict[str, list[Size]] = {}  # noqa: RUF012
    """Shape of a sample, without the batch axis, of inputs whose shape the model does not state:
    `{x: [3, 640, 640]}`."""
    integers: dict[str, tuple[int, int]] = {}  # noqa: RUF012
    """Smallest and largest value of inputs of integers: `{input_ids: [0, 30000]}`; 0 and 1 by
    default."""
    num_samples: Size = 32
    """Number of samples."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Seed of the values."""


@dataclass(frozen=True, slots=True)
class _Input:
    """One input of a sample; a dimension whose size is not known is None."""

    spec: InputSpec
    shape: tuple[int | None, ...]
    lowest: int
    highest: int
    has_batch_axis: bool = True


class RandomInputs(DataSource[RandomConfig]):
    """Random inputs of the shapes and dtypes of a model, for its latency alone.

    Floats are drawn from the standard normal distribution. Nothing about accuracy can be told from
    them: metrics, calibration and training on such a set are refused.
    """

    name = "random"
    Config = RandomConfig

    def problems(self, config: RandomConfig, context: SourceContext) -> list[str]:
        """Return sizes that are missing, and fields that name nothing in the model."""
        try:
            inputs = _inputs(config, context.base)
        except CompressError as error:
            return [f"`model: {config.model}`: {error.what}"]
        return [*_input_problems(inputs), *_unknown_names(config, inputs)]

    def facts(self, config: RandomConfig, context: SourceContext) -> DataFacts:
        """Return shapes and dtypes, and that the values are random."""
        context.note(_NOTE)
        inputs = _inputs(config, context.base)
        return DataFacts(
            tuple(InputFacts(one.spec.name, one.spec.dtype, one.shape) for one in inputs),
            has_labels=False,
            num_samples=config.num_samples,
            is_random=True,
        )

    def digest(self, config: RandomConfig, context: SourceContext) -> str:
        """Return a digest of the config and of the inputs, but not of the model's weights."""
        inputs = [
            [one.spec.name, one.spec.dtype, one.shape, one.lowest, one.highest]
            for one in _inputs(config, context.base)
        ]
        return digest_json(
            {"version": 1, "inputs": inputs, "samples": config.num_samples, "seed": config.seed}
        )

    def load(self, config: RandomConfig, context: SourceContext) -> Dataset:
        """Return the samples.

        Raises:
            DataError: the model's inputs cannot be made.
        """
        if problems := self.problems(config, context):
            raise DataError("; ".join(problems))
        context.note(_NOTE)
        return _RandomDataset(_inputs(config, context.base), config)


class _RandomDataset(Dataset):
    """Samples that are drawn when they are read; sample i depends on the seed and i alone."""

    label_name = None

    def __init__(self, inputs: Sequence[_Input], config: RandomConfig) -> None:
        self._inputs, self._config = inputs, config
        self.input_names = tuple(one.spec.name for one in inputs)

    def __len__(self) -> int:
        return self._config.num_samples

    def batch(self, indices: np.ndarray[Any, Any], epoch: int = 0) -> Batch:  # noqa: ARG002
        """Return samples; see ``Dataset.batch``."""
        samples = [self._sample(int(index)) for index in indices]
        return {name: np.stack([sample[name] for sample in samples]) for name in self.input_names}

    def _sample(self, index: int) -> Batch:
        generator = np.random.default_rng((self._config.seed, index))
        return {one.spec.name: _draw(one, generator) for one in self._inputs}


def _draw(one: _Input, generator: np.random.Generator) -> np.ndarray[Any, Any]:
    shape = tuple(size or 1 for size in one.shape)
    dtype = np.dtype(one.spec.dtype)
    if dtype.kind == "f":
        return np.asarray(generator.standard_normal(shape), dtype=dtype)
    if dtype.kind == "b":
        return np.asarray(generator.random(shape) < 1 / 2)
    return np.asarray(
        generator.integers(one.lowest, one.highest, shape, dtype, endpoint=True), dtype=dtype
    )


def _inputs(config: RandomConfig, base: Path) -> list[_Input]:
    """Return the inputs that the model requires.

    Raises:
        CompressError: the model is not recognized, or its inputs are not known.
    """
    stored = recognize_model(base / config.model)
    specs = stored.format.inputs(stored.path)
    if specs is None:
        raise DataError("its inputs are not known", remedy="use data of the source `arrays`")
    required = [spec for spec in specs if not spec.optional]
    return [_input(spec, config, _batch_axes(required)) for spec in required]


def _batch_axes(specs: Sequence[InputSpec]) -> set[int | str]:
    """Return the first dimensions that are batch axes: names, 1, or one size of all inputs."""
    first = {spec.shape[0] for spec in specs if spec.shape}
    names: set[int | str] = {size for size in first if isinstance(size, str) or size == 1}
    return names or (first if len(first) == 1 else set())


def _input(spec: InputSpec, config: RandomConfig, batch_axes: set[int | str]) -> _Input:
    lowest, highest = config.integers.get(spec.name, _DEFAULT_INTEGERS)
    if spec.name in config.shapes:
        return _Input(spec, tuple(config.shapes[spec.name]), lowest, highest)
    has_batch_axis = bool(spec.shape) and spec.shape[0] in batch_axes
    shape = tuple(
        size
        if isinstance(size, int)
        else config.dimensions.get(size, 1 if size in batch_axes else None)
        for size in spec.shape[has_batch_axis:]
    )
    return _Input(spec, shape, lowest, highest, has_batch_axis)


def _is_number(spec: InputSpec) -> bool:
    return spec.dtype in _KINDS or spec.dtype in _INTEGERS


def _open_dimensions(one: _Input) -> list[str]:
    """Return the names of the dimensions without a size."""
    named = one.spec.shape[len(one.spec.shape) - len(one.shape) :]
    return [str(name) for name, size in zip(named, one.shape, strict=True) if size is None]


def _input_problems(inputs: Sequence[_Input]) -> Iterator[str]:
    for one in inputs:
        spec = one.spec
        if not _is_number(spec):
            yield (
                f"the input {spec.name} is of {spec.dtype} values, which have no random form; use "
                "data of the source `arrays`"
            )
            continue
        if REST in spec.shape and one.shape == (None,) * len(one.shape):
            yield f"the shape of {spec.name} is not stated: set `shapes: {{{spec.name}: [...]}}`"
            continue
        for name in _open_dimensions(one):
            yield f"{name}, a dimension of {spec.name}, varies: set `dimensions: {{{name}: ...}}`"
        yield from _range_problems(one)


def _range_problems(one: _Input) -> Iterator[str]:
    if one.spec.dtype not in _INTEGERS:
        return
    limits = np.iinfo(one.spec.dtype)
    if not limits.min <= one.lowest <= one.highest <= limits.max:
        yield (
            f"`integers: {{{one.spec.name}: [{one.lowest}, {one.highest}]}}` is no range of "
            f"{one.spec.dtype}: expected [smallest, largest]"
        )
    if one.spec.below is not None and one.highest >= one.spec.below:
        yield f"{one.spec.name} takes values below {one.spec.below}, not {one.highest}"


def _unknown_names(config: RandomConfig, inputs: Sequence[_Input]) -> Iterator[str]:
    """Yield entries of the config that name no input, or no dimension that varies."""
    names = [one.spec.name for one in inputs]
    dimensions = [
        size for one in inputs for size in one.spec.shape if isinstance(size, str) and size != REST
    ]
    integers = [one.spec.name for one in inputs if one.spec.dtype in _INTEGERS]
    known: Mapping[str, tuple[Mapping[str, Any], list[str]]] = {
        "shapes": (config.shapes, names),
        "dimensions": (config.dimensions, dimensions),
        "integers": (config.integers, integers),
    }
    for field, (entries, allowed) in known.items():
        for name in entries:
            if name not in allowed:
                listed = ", ".join(dict.fromkeys(allowed)) or "none"
                yield f"`{field}: {{{name}: ...}}` names nothing in the model; it has {listed}"
