"""Score generated and recognized texts by the errors of their words and characters.

Shapes: N samples, T frames, C tokens of the vocabulary.
"""

from __future__ import annotations

import re
import unicodedata
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from compressor.data.contract import Dataset
from compressor.errors import DataError
from compressor.evaluation.metrics import Array, Scores, metric_named
from compressor.evaluation.scoring import (
    NOTHING,
    OutputScorer,
    ScoredBatch,
    output_array,
    raise_nan,
    samples_with_nan,
)
from compressor.evaluation.text_generator import TextGenerator

_RANK = 3
_MARKED = re.compile(r"[<\[][^>\]]*[>\]]|\([^)]*\)")
"""Text in brackets, such as `[noise]`."""


class TranscriptScorer(OutputScorer):
    """Counts the errors in the text of each sample: ``wer`` and ``cer``."""

    def __init__(self, metrics: tuple[str, ...], dataset: Dataset, *, normalize: bool) -> None:
        """Create a scorer.

        Args:
            metrics: the metrics.
            dataset: samples with texts.
            normalize: compare without case, punctuation and text in brackets.

        Raises:
            DataError: the data set has no texts.
        """
        if dataset.texts is None:
            raise DataError(
                f"{' and '.join(metrics)} compare texts, and the data set has none",
                remedy="name a data set with texts, such as one of `audio` with transcripts, or "
                "of `text-samples` with `target`",
            )
        self.metrics, self.dataset = metrics, dataset
        self.texts, self.normalize = dataset.texts, normalize
        self.errors: dict[str, list[int]] = {name: [] for name in metrics}
        self.lengths: dict[str, list[int]] = {name: [] for name in metrics}

    @abstractmethod
    def recognize(self, scored: ScoredBatch) -> list[list[int]]:
        """Return the tokens of each sample of a batch."""

    def update(self, scored: ScoredBatch) -> None:
        """Spell the samples of a batch, and count their errors.

        Raises:
            DataError: outputs have other shapes.
            NumericalError: the model outputs NaN.
        """
        for number, tokens in enumerate(self.recognize(scored), start=scored.done):
            text, expected = self.dataset.spell(tokens), self.texts[number]
            if self.normalize:
                text, expected = normalized(text), normalized(expected)
            for name in self.metrics:
                split = _SPLITS[name.partition(":")[0]]
                self.errors[name].append(edit_distance(split(text), split(expected)))
                self.lengths[name].append(len(split(expected)))

    def finish(self) -> Scores:
        """Return the scores of all samples.

        Raises:
            DataError: all texts are empty.
        """
        terms = {
            name: (np.array(self.errors[name]), np.array(lengths))
            for name, lengths in self.lengths.items()
        }
        if empty := [name for name, (_, lengths) in terms.items() if not lengths.any()]:
            raise DataError(f"all texts of the data set are empty: {empty[0]} cannot be measured")
        values = {name: metric_named(name).score(*pair) for name, pair in terms.items()}
        everything = np.ones(len(next(iter(values.values()))), dtype=np.bool_)
        scored = dict.fromkeys(self.metrics, everything)
        return Scores(values, scored, everything, NOTHING, NOTHING, terms)


class CtcScorer(TranscriptScorer):
    """Scores the best path of CTC (Graves et al. 2006).

    Of each frame the token with the largest logit counts; repetitions are merged and blanks left
    out.
    """

    def __init__(
        self, metrics: tuple[str, ...], dataset: Dataset, *, normalize: bool, output: str
    ) -> None:
        """Create a scorer of the output of logits, for a data set with a blank token."""
        super().__init__(metrics, dataset, normalize=normalize)
        self.output = output

    def recognize(self, scored: ScoredBatch) -> list[list[int]]:
        """See ``TranscriptScorer``; logits are [N, T, C]."""
        logits_NTC = output_array(scored.outputs, self.output, "the model")
        if logits_NTC.ndim != _RANK:
            raise DataError(
                f"the model outputs {self.output} {list(logits_NTC.shape)}, expected [N, T, C]"
            )
        raise_nan("the model", samples_with_nan(logits_NTC), logits_NTC, scored)
        blank = self.dataset.blank_token
        assert blank is not None  # noqa: S101 - this scorer is chosen for sets with one
        return [collapse(path_T, blank) for path_T in logits_NTC.argmax(axis=2)]


class GeneratedScorer(TranscriptScorer):
    """Scores the texts that an encoder-decoder generates."""

    needs_outputs = False

    def __init__(
        self,
        metrics: tuple[str, ...],
        dataset: Dataset,
        *,
        normalize: bool,
        generator: TextGenerator,
    ) -> None:
        """Create a scorer of an open model."""
        super().__init__(metrics, dataset, normalize=normalize)
        self.generator = generator

    def recognize(self, scored: ScoredBatch) -> list[list[int]]:
        """See ``TranscriptScorer``."""
        return self.generator.generate(scored.batch)


def _characters(text: str) -> list[str]:
    return list(" ".join(text.split()))


_SPLITS: Mapping[str, Callable[[str], list[str]]] = {"wer": str.split, "cer": _characters}
"""Metric to the function that splits a text into its units."""


def normalized(text: str) -> str:
    """Return a text without case, punctuation, and text in brackets (Radford et al. 2022)."""
    composed = unicodedata.normalize("NFKC", _MARKED.sub("", text.lower()))
    return "".join(
        " " if unicodedata.category(character)[0] in "MSP" else character for character in composed
    )


def collapse(path_T: Array, blank: int) -> list[int]:
    """Return the tokens of a path of CTC: repetitions merged, then blanks left out."""
    starts_T = np.append(True, path_T[1:] != path_T[:-1])
    tokens: list[int] = path_T[starts_T & (path_T != blank)].tolist()
    return tokens


def edit_distance(first: Sequence[str], second: Sequence[str]) -> int:
    """Return the smallest number of insertions, deletions and substitutions (Levenshtein 1966)."""
    row = list(range(len(second) + 1))
    for index, item in enumerate(first, start=1):
        diagonal, row[0] = row[0], index
        for column, other in enumerate(second, start=1):
            substitution = diagonal + (item != other)
            diagonal = row[column]
            row[column] = min(row[column] + 1, row[column - 1] + 1, substitution)
    return row[-1]
