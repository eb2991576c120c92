"""Contract of data sources: checks without reading samples, a digest, and batches of NumPy arrays.

Sources are found through the entry-point group ``autoglm_compress.sources``; ours are in
``calibration/sources``. Batches are NumPy arrays so that a process that measures an ONNX model does
not import torch.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

import numpy as np

from compressor.config.record import Record

Batch = dict[str, np.ndarray[Any, Any]]
"""Arrays by name; the first axis is the sample. Consecutive samples may share an input, such as one
screen for several commands: that array, and its labels, are then shorter."""


class SourceConfig(Record):
    """Base of every source's config."""

    source: str
    """Name of the data source, such as phone-bed, images, text or python; `autoglm-compress passes`
    lists them."""


C = TypeVar("C", bound=SourceConfig)


def default_cache() -> Path:
    """Return the default folder for files that are costly to build and can be built again."""
    return Path.home() / ".cache" / "autoglm-compress"


@dataclass(frozen=True, slots=True)
class SourceContext:
    """Paths, permissions and callbacks of a source."""

    base: Path
    """Folder that relative paths in a config start from: that of pipeline.yaml."""
    allow_code: bool = False
    """True if the source may run the user's code."""
    cache: Path = field(default_factory=default_cache)
    progress: Callable[[str, int, int], None] = lambda *_: None
    """Called as (activity, done, total) in the course of a long build."""
    note: Callable[[str], None] = lambda _: None
    """Called with one line for the user that is not an error, such as the number of skipped files.
    Any method of a source may call it; equal lines are shown once."""


@dataclass(frozen=True, slots=True)
class InputFacts:
    """One input array of a data set, as far as it is known before the samples are built."""

    name: str
    dtype: str
    """NumPy dtype name."""
    shape: tuple[int | None, ...]
    """Shape of one sample, without the batch axis; None for a size that is not known."""
    largest: int | None = None
    """Largest value that can occur, such as the largest id of a tokenizer; None if not known."""
    largest_from: str = ""
    """Origin of ``largest`` for messages, such as the tokenizer's file."""


@dataclass(frozen=True, slots=True)
class DataFacts:
    """A data set, as far as it is known before the samples are built; None for what is not."""

    inputs: tuple[InputFacts, ...] | None = None
    """Arrays that a model takes."""
    has_labels: bool | None = None
    num_samples: int | None = None
    num_classes: int | None = None
    """Exclusive upper bound of the labels."""
    class_names: tuple[str, ...] | None = None
    """Names of the classes in the order of the labels."""
    more_inputs: Mapping[str, str] = field(default_factory=dict)
    """Input that the set lacks, to the field of its config that adds it."""
    retrieval_labels: tuple[int, ...] | None = None
    """Labels of a set for retrieval in the order of its samples, as its batches have them."""
    is_random: bool = False
    """True if the values have no meaning: only latency can be measured on them."""


@dataclass(frozen=True, slots=True)
class StarterData:
    """A data set for a model, as `init --from` writes it."""

    fields: Mapping[str, Any]
    """Fields of the config beside ``source``; values of the type ``Path`` are written relative to
    pipeline.yaml. A field ``path`` is a placeholder for the user's files."""
    inputs: frozenset[str]
    """Inputs of the model that the samples have."""
    files: str | None = None
    """The files that ``path`` has to name; None if the source needs none."""
    needs_code: bool = False
    """True if only ``--allow-code`` reads it; another source goes first."""
    fits_any_model: bool = False
    """True if the source is no better for this model than for others, which go first."""


@dataclass(frozen=True, slots=True)
class StarterInputs:
    """A model for which a data set is chosen."""

    folder: Path
    """Folder of the model, which may hold a tokenizer."""
    inputs: tuple[InputFacts, ...]
    required: frozenset[str]
    """Names of the inputs without which the model does not run."""
    longest: int | None = None
    """Largest number of tokens, where the model states it."""

    def named(self, name: str) -> InputFacts | None:
        """Return an input by its name; None if there is none."""
        return next((facts for facts in self.inputs if facts.name == name), None)


class Dataset(ABC):
    """A set of samples with random access.

    Attributes:
        input_names: names of the arrays that a model takes, in its order.
        label_name: name of the array of labels; None if there are no labels.
        blank_token: id of the blank of CTC, for speech whose labels are the tokens of transcripts
            [N, L], padded with -100; None for other sets.
        texts: the text that belongs to each sample, such as the transcript of a recording or the
            translation of a text; None if there are none.
        language, task: those of the texts, for models that have tokens for them; None for the
            model's own.
    """

    input_names: tuple[str, ...]
    label_name: str | None
    blank_token: int | None = None
    texts: Sequence[str] | None = None
    language: str | None = None
    task: str | None = None

    @abstractmethod
    def __len__(self) -> int:
        """Return the number of samples."""

    @abstractmethod
    def batch(self, indices: np.ndarray[Any, Any], epoch: int = 0) -> Batch:
        """Return inputs and labels of samples.

        Args:
            indices: indices of the samples, int64 [B].
            epoch: epoch of the training. The batch is a pure function of ``indices`` and ``epoch``;
                sets without augmentation ignore the epoch.
        """

    def slices(self) -> Mapping[str, np.ndarray[Any, Any]]:
        """Return the slices by which accuracy is reported.

        Returns:
            Slicing to the slice of each sample, str [N]: ``{"input": ["text", "speech", …]}``.
        """
        return {}

    def strata(self) -> Mapping[str, np.ndarray[Any, Any]]:
        """Return the strata by which training may weight samples; not reported.

        The format is that of ``slices``, which are the default.
        """
        return self.slices()

    def class_names(self) -> tuple[str, ...] | None:
        """Return the names of the classes in the order of the labels; None if they have none."""
        return None

    def spell(self, tokens: Sequence[int]) -> str:
        """Return the text that tokens spell, without special tokens.

        Only sets with ``texts`` can.
        """
        raise NotImplementedError(f"{type(self).__name__} has no texts")

    def batches(self, batch_size: int, limit: int | None = None) -> Iterator[Batch]:
        """Yield the samples in order, at most ``limit`` of them."""
        count = len(self) if limit is None else min(limit, len(self))
        for start in range(0, count, batch_size):
            yield self.batch(np.arange(start, min(start + batch_size, count), dtype=np.int64))


class DataSource(ABC, Generic[C]):
    """A kind of data that a pipeline can name.

    A new source is one class and one entry point. Its module must import without torch.
    """

    name: ClassVar[str]
    Config: ClassVar[type[SourceConfig]]

    @abstractmethod
    def problems(self, config: C, context: SourceContext) -> list[str]:
        """Return every problem that is found without reading samples or importing heavy libraries.

        Examples are missing files, empty files and missing packages.
        """

    def facts(self, config: C, context: SourceContext) -> DataFacts:  # noqa: ARG002
        """Return what is known of the set without building samples; by default nothing.

        The plan compares it with the models that run on the set. It is called only if ``problems``
        found none, and imports no heavy libraries.
        """
        return DataFacts()

    def starter(self, model: StarterInputs) -> StarterData | None:  # noqa: ARG002
        """Return a data set with samples for a model; None, the default, if the inputs differ."""
        return None

    @abstractmethod
    def digest(self, config: C, context: SourceContext) -> str:
        """Return a sha256 over everything that can change a sample.

        That is the content of the files, but not their paths; the config; and a version of the
        source's code.
        """

    @abstractmethod
    def load(self, config: C, context: SourceContext) -> Dataset:
        """Return the samples, built or from the cache.

        Raises:
            DataError: a file is missing, empty or unreadable.
            MissingExtraError: a library that the source needs is not installed.
        """
