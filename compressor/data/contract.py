"""What a data source promises: cheap checks, a digest of its content, and batches of NumPy arrays.

The engine finds sources through the entry-point group ``autoglm_compress.sources``; they live in ``calibration/sources``
or in other people's packages. Arrays are NumPy so that a process that measures an ONNX file never loads torch.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

import numpy as np

from compressor.config.record import Record

Batch = dict[str, np.ndarray[Any, Any]]
"""Name to array; the first axis of every array is the sample. A set may let samples in a row share an input (one screen for
several commands): that array, and what labels it, is then shorter."""


class SourceConfig(Record):
    """Base of every source's config; ``source`` names it."""

    source: str
    """The data source: one of `autoglm-compress passes` (sources), such as phone-bed, images, text or python."""


C = TypeVar("C", bound=SourceConfig)


def _silent(what: str, done: int, total: int) -> None:
    """Nobody is told."""


def default_cache() -> Path:
    """Where what is costly to make and can be made again is kept, where nobody says otherwise."""
    return Path.home() / ".cache" / "autoglm-compress"


@dataclass(frozen=True, slots=True)
class SourceContext:
    """What a source may use: where relative paths start, whether user code is allowed, where to cache, whom to tell."""

    base: Path
    """The folder of pipeline.yaml: relative paths in a config start here."""
    allow_code: bool = False
    cache: Path = field(default_factory=default_cache)
    progress: Callable[[str, int, int], None] = _silent
    """Called as (what, done, total) while a long build goes on."""


class Dataset(ABC):
    """A set of samples with random access.

    Attributes:
        input_names: the arrays that are fed to a model, in its order.
        label_name: the array that holds the answer, or None where there is none.
    """

    input_names: tuple[str, ...]
    label_name: str | None

    @abstractmethod
    def __len__(self) -> int:
        """The number of samples."""

    @abstractmethod
    def batch(self, indices: np.ndarray[Any, Any], epoch: int = 0) -> Batch:
        """The samples at ``indices`` (int64, [B]), inputs and labels.

        The result is a pure function of (indices, epoch): sets that augment vary with the epoch, others ignore it.
        """

    def slices(self) -> Mapping[str, np.ndarray[Any, Any]]:
        """Axis to one label per sample ([N], str), as ``{"input": ["text", "speech", …]}``; accuracy is told by slice."""
        return {}

    def strata(self) -> Mapping[str, np.ndarray[Any, Any]]:
        """As ``slices``, but as fine as training may weigh samples by; never told in reports."""
        return self.slices()

    def class_names(self) -> tuple[str, ...] | None:
        """The names of the answers, where there are any."""
        return None

    def batches(self, batch_size: int, limit: int | None = None) -> Iterator[Batch]:
        """All samples in order, ``batch_size`` at a time, at most ``limit`` of them."""
        count = len(self) if limit is None else min(limit, len(self))
        for start in range(0, count, batch_size):
            yield self.batch(np.arange(start, min(start + batch_size, count), dtype=np.int64))


class DataSource(ABC, Generic[C]):
    """A kind of data that pipeline.yaml can name."""

    name: ClassVar[str]
    Config: ClassVar[type[SourceConfig]]

    @abstractmethod
    def problems(self, config: C, context: SourceContext) -> list[str]:
        """Everything wrong that can be known without reading the samples; touches no heavy library."""

    @abstractmethod
    def digest(self, config: C, context: SourceContext) -> str:
        """sha256 over everything that can change a sample: the content of each file, the config, the code's version."""

    @abstractmethod
    def load(self, config: C, context: SourceContext) -> Dataset:
        """The samples, built or from the cache.

        Raises:
            DataError: a file is missing, empty or unreadable.
            MissingExtraError: a library it needs is not installed.
        """
