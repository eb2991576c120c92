"""Windows of tokens from a data set, to compare and to calibrate decoders on."""

from __future__ import annotations

import numpy as np

from compressor.data.contract import Batch, Dataset
from compressor.errors import DataError
from compressor.graphs.decoder.interface import ATTENTION_MASK, INPUT_IDS
from compressor.models.families.transformers.images import sample_images


def read_windows(
    dataset: Dataset, name: str, count: int, context_length: int, *, spread: bool = False
) -> list[Batch]:
    """Read samples of tokens, without padding and with their images.

    Args:
        dataset: the data set.
        name: its name, for messages.
        count: the largest number of windows.
        context_length: tokens that a window may have.
        spread: take the first sample of each of ``count`` equal stretches of the set, and not its
            first samples.

    Returns:
        Batches of one window each, `input_ids` [1, T].

    Raises:
        DataError: the set is empty, has no tokens, or windows that are too long.
    """
    count = min(count, len(dataset))
    if not count:
        raise DataError(
            f"the data set {name!r} is empty: the export reads windows of it",
            remedy="name another data set",
        )
    indices = np.arange(count, dtype=np.int64)
    arrays = dataset.batch(indices * len(dataset) // count if spread else indices)
    batch = {name: arrays[name] for name in dataset.input_names if name in arrays}
    if INPUT_IDS not in batch or batch[INPUT_IDS].shape[1] < 2:
        raise DataError(
            f"the data set {name!r} has no windows of two tokens or more (`input_ids`)",
            remedy="name a set of the source `text` with the checkpoint's `tokenizer`",
        )
    windows = [_window(batch, row) for row in range(len(batch[INPUT_IDS]))]
    longest = max(window[INPUT_IDS].shape[1] for window in windows)
    if longest > context_length:
        raise DataError(
            f"the data set {name!r} has windows of {longest} tokens, and the graph attends to "
            f"{context_length}",
            remedy="name a set with a smaller `sequence_length`, or remove "
            "`decoder.context_length`",
        )
    return windows


def _window(batch: Batch, row: int) -> Batch:
    """Return one sample of a batch without padding, with its images, if it has any."""
    length = batch[INPUT_IDS].shape[1]
    if ATTENTION_MASK in batch:
        length = int(batch[ATTENTION_MASK][row].sum())
    window = {INPUT_IDS: batch[INPUT_IDS][row : row + 1, :length]}
    return window | sample_images(batch, row, length)
