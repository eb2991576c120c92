"""Architecture of ``module``: how the module is built, and its inputs and outputs; no torch."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

import numpy as np
from pydantic import Field, model_validator

from compressor.artifacts.fingerprint import digest_json
from compressor.config.record import Record
from compressor.models.capabilities.signature import InputSpec

BATCH = "batch"
"""Name of the first dimension of every input."""
_PROBED_SIZE = 64
"""Size at which a variable dimension is tried, where `example` names none."""

_MOST_BYTES = 1 << 28
"""Largest sample that the module is tried with; a float32 picture of 8192 × 8192 has this size."""

Size = Annotated[int, Field(ge=1)]
OutputPath = tuple[int | str, ...]
"""Place of a tensor in what ``forward`` returns: indices of tuples, keys of mappings."""
Builder = Literal["python", "timm", "torchvision", "program"]


class InputConfig(Record):
    """One input of the module."""

    shape: tuple[Size | str, ...]
    """Sizes; a name for each dimension that varies. The first one is `batch`:
    `[batch, 3, 224, 224]`, `[batch, tokens]`."""
    dtype: Literal[
        "float32", "float16", "float64", "int64", "int32", "int16", "int8", "uint8", "bool"
    ] = "float32"
    """Type of the values, as NumPy names it."""
    below: Size | None = None
    """Exclusive upper bound of the values, for numbers of rows in a table."""
    longest: Size | None = None
    """Largest size of the dimensions that vary, without the batch."""
    example: dict[str, Size] = {}  # noqa: RUF012 - pydantic copies it
    """Sizes of named dimensions with which the module is tried once; 64 by default."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not self.shape or self.shape[0] != BATCH:
            raise ValueError(
                f"the first dimension of `shape` is the sample: name it `{BATCH}`, as in "
                f"[{BATCH}, 3, 224, 224]"
            )
        if BATCH in self.shape[1:]:
            raise ValueError(f"`{BATCH}` is the name of the first dimension alone")
        if unknown := sorted(set(self.example) - {*map(str, self.dimensions)}):
            raise ValueError(f"`example` names no dimension of the shape: {', '.join(unknown)}")
        if self.below is not None and np.dtype(self.dtype).kind not in "iu":
            raise ValueError("`below` bounds integers; the dtype is " + self.dtype)
        size_bytes = math.prod(self.probed_shape(1)) * np.dtype(self.dtype).itemsize
        if size_bytes > _MOST_BYTES:
            raise ValueError(
                f"one sample has {size_bytes / 1e9:.3g} GB; the module is tried with at most "
                f"{_MOST_BYTES / 1e9:.2g} GB, and `example` sets the sizes of dimensions"
            )
        return self

    @property
    def dimensions(self) -> tuple[str, ...]:
        """Names of the dimensions that vary, without the batch."""
        return tuple(size for size in self.shape[1:] if isinstance(size, str))

    def probed_shape(self, batch: int) -> tuple[int, ...]:
        """Return a shape to try the module with."""
        default = min(self.longest or _PROBED_SIZE, _PROBED_SIZE)
        sizes = {BATCH: batch} | {name: self.example.get(name, default) for name in self.dimensions}
        return tuple(sizes[size] if isinstance(size, str) else size for size in self.shape)


class NamedInput(InputConfig):
    """One input in the order of ``forward``."""

    name: str
    """Name of the input."""


class Output(Record):
    """One output."""

    name: str
    """Name of the output."""
    path: OutputPath = ()
    """Its place in what ``forward`` returns: indices of tuples, keys of mappings."""


class Counts(Record):
    """Sizes that were counted when the module was built last, so that reading needs no code."""

    of: str
    """Digest of the fields that they were counted from."""
    parameters: dict[str, int]
    """Parameters by child module, tied ones once."""
    macs: int
    """Multiply-accumulates of one unit."""
    classes: int | None = None
    """Number of classes of `logits`."""


class ModuleConfig(Record):
    """Constructor of a module, and its inputs and outputs."""

    python: str | None = None
    """File and function, or class, that builds the module: `my_model.py:build`."""
    code: dict[str, str] = {}  # noqa: RUF012 - pydantic copies it
    """Text of the Python files by path: that of `python`, and those that it imports."""
    timm: str | None = None
    """Name of a model of timm."""
    torchvision: str | None = None
    """Name of a model of torchvision."""
    program: str | None = None
    """A program of torch.export without its weights, base64."""
    arguments: dict[str, Any] = {}  # noqa: RUF012 - pydantic copies it
    """Keyword arguments of the function, or of the library's constructor."""
    inputs: tuple[NamedInput, ...] = ()
    """Inputs in the order of ``forward``."""
    outputs: tuple[Output, ...] = ()
    """Outputs in the order of an exported graph."""
    call: Literal["keyword", "position", "mapping"] = "position"
    """Form in which ``forward`` takes the inputs: by keyword, by position, or as a dict."""
    unit: Literal["sample", "token"] = "sample"
    """Unit of the MACs."""
    sizes: dict[str, tuple[Size, ...]] = {}  # noqa: RUF012 - pydantic copies it
    """Shapes of the tensors that differ from those of the built module, after pruning."""
    counts: Counts | None = None
    """Sizes as counted last."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        builders = [name for name in _BUILDERS if getattr(self, name) is not None]
        if len(builders) != 1:
            raise ValueError(
                f"expected one of {', '.join(_BUILDERS)}; "
                f"set are {' and '.join(builders) or 'none'}"
            )
        return self

    @property
    def builder(self) -> Builder:
        """The field that names what builds the module."""
        return next(name for name in _BUILDERS if getattr(self, name) is not None)

    @property
    def title(self) -> str:
        """Name of the function or class that builds the module, for messages."""
        if self.program is not None:
            return "the program of torch.export"
        return str(self.python or self.timm or self.torchvision)

    @property
    def digest(self) -> str:
        """Digest of everything that determines the module, without counts."""
        return digest_json(self.model_dump(mode="json", exclude={"counts"}))

    def input_specs(self) -> tuple[InputSpec, ...]:
        """Return the inputs for a signature."""
        return tuple(
            InputSpec(config.name, config.dtype, config.shape, config.below, config.longest)
            for config in self.inputs
        )

    @property
    def input_names(self) -> tuple[str, ...]:
        """Names of the inputs, in the order of ``forward``."""
        return tuple(config.name for config in self.inputs)

    @property
    def output_paths(self) -> dict[str, OutputPath]:
        """Outputs by name, with their place in what ``forward`` returns."""
        return {output.name: output.path for output in self.outputs}


_BUILDERS: tuple[Builder, ...] = ("python", "timm", "torchvision", "program")


def replaced(config: ModuleConfig, fields: Mapping[str, Any]) -> ModuleConfig:
    """Return the config with fields replaced; another builder replaces the one that was set.

    Raises:
        pydantic.ValidationError: the fields do not fit together.
    """
    tree = config.model_dump(mode="json", exclude={"counts"})
    if not fields.keys().isdisjoint({*_BUILDERS, "arguments"}):
        tree["sizes"] = {}
    if not fields.keys().isdisjoint(_BUILDERS):
        tree |= dict.fromkeys(_BUILDERS) | {"arguments": {}}
    return ModuleConfig.model_validate_json(json.dumps(tree | dict(fields)))


def is_program(config: Record) -> bool:
    """Return True for a program of torch.export, which is opened when a step starts."""
    return isinstance(config, ModuleConfig) and config.program is not None
