"""Score speech recognition by CTC: the text that logits spell, against transcripts.

Shapes: N samples, T frames, C tokens of the vocabulary, L tokens of a transcript.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from compressor.data.contract import Dataset
from compressor.errors import DataError
from compressor.evaluation.metrics import IGNORED_LABEL, Array, Scores, metric_named
from compressor.evaluation.scoring import (
    NOTHING,
    OutputScorer,
    ScoredBatch,
    output_array,
    raise_nan,
    samples_with_nan,
)

_RANK = 3


class TranscriptScorer(OutputScorer):
    """Counts the errors of the best path of CTC (Graves et al. 2006): ``wer`` and ``cer``.

    Of each frame the token with the largest logit counts; repetitions are merged and blanks left
    out.
    """

    def __init__(self, metrics: tuple[str, ...], output: str, dataset: Dataset) -> None:
        """Create a scorer.

        Raises:
            DataError: the data set has no transcripts.
        """
        if dataset.blank_token is None or dataset.label_name is None:
            raise DataError(
                f"{' and '.join(metrics)} compare transcripts, and the data set has none",
                remedy="name a data set of speech with transcripts, such as one of `audio`",
            )
        self.metrics, self.output, self.dataset = metrics, output, dataset
        self.blank, self.label_name = dataset.blank_token, dataset.label_name
        self.errors: dict[str, list[int]] = {name: [] for name in metrics}
        self.lengths: dict[str, list[int]] = {name: [] for name in metrics}

    def update(self, scored: ScoredBatch) -> None:
        """Spell the samples of a batch, and count their errors.

        Raises:
            DataError: the logits are not [N, T, C].
            NumericalError: the model outputs NaN.
        """
        logits_NTC = output_array(scored.outputs, self.output, "the model")
        if logits_NTC.ndim != _RANK:
            raise DataError(
                f"the model outputs {self.output} {list(logits_NTC.shape)}, expected [N, T, C]"
            )
        raise_nan("the model", samples_with_nan(logits_NTC), logits_NTC, scored)
        labels_NL = scored.batch[self.label_name]
        for path_T, label_L in zip(logits_NTC.argmax(axis=2), labels_NL, strict=True):
            spoken = self.dataset.spell(label_L[label_L != IGNORED_LABEL].tolist())
            heard = self.dataset.spell(collapse(path_T, self.blank))
            for name in self.metrics:
                split = _SPLITS[name.partition(":")[0]]
                self.errors[name].append(edit_distance(split(heard), split(spoken)))
                self.lengths[name].append(len(split(spoken)))

    def finish(self) -> Scores:
        """Return the scores of all samples."""
        values = {
            name: metric_named(name).score(np.array(self.errors[name]), np.array(lengths))
            for name, lengths in self.lengths.items()
        }
        everything = np.ones(len(next(iter(values.values()))), dtype=np.bool_)
        return Scores(values, dict.fromkeys(self.metrics, everything), everything, NOTHING, NOTHING)


_SPLITS: Mapping[str, Callable[[str], list[str]]] = {"wer": lambda text: text.split(), "cer": list}
"""Metric to the function that splits a text into its units."""


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
