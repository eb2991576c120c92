"""Arrays of the data source ``text-samples``: tokens, masks, and labels.

Shapes: N samples, T tokens, D tokens of the decoder.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from calibration.sources.arrays import Array
from calibration.sources.files import open_tokenizer
from calibration.sources.text_sample_records import Label, Sample
from compressor.errors import DataError
from compressor.foreign_files.json_files import read_json_object
from compressor.models.checkpoint.decoder_start import first_tokens

if TYPE_CHECKING:
    from tokenizers import Encoding as TokenizerEncoding
    from tokenizers import Tokenizer

TOKENS, MASK, TYPES = "input_ids", "attention_mask", "token_type_ids"
DECODER_TOKENS, LABEL = "decoder_input_ids", "label"
_IGNORED = -100
_CONFIG, _TOKENIZER_CONFIG = "config.json", "tokenizer_config.json"
_USUAL = {"pad": ("[PAD]", "<pad>", "<|endoftext|>"), "mask": ("[MASK]", "<mask>")}
"""Usual special tokens, for a tokenizer without a config file."""


@dataclass(frozen=True, slots=True)
class Encoding:
    """Settings of the encoding."""

    tokenizer: Path
    """The file tokenizer.json."""
    longest: int
    """Largest number of tokens per sample."""
    token_types: bool
    masked: float | None
    """Part of the tokens that a masked language model has to find."""
    seed: int


def encode_samples(
    samples: Sequence[Sample], encoding: Encoding
) -> tuple[dict[str, Array], tuple[str, ...] | None]:
    """Return the arrays of samples, inputs first, and the names of the classes if they have any.

    Raises:
        DataError: the tokenizer cannot be read, lacks a token that is needed, or labels do not go
            together.
    """
    tokenizer = open_tokenizer(encoding.tokenizer)
    tokenizer.enable_truncation(encoding.longest)
    encoded = _encode(tokenizer, samples)
    pad = _special_token(tokenizer, encoding.tokenizer, "pad")
    pad = 0 if pad is None else pad
    arrays = {
        TOKENS: _padded([row.ids for row in encoded], pad),
        MASK: _padded([row.attention_mask for row in encoded], 0),
    }
    if encoding.token_types:
        arrays[TYPES] = _padded([_types(row) for row in encoded], 0)
    if samples[0].target is not None:
        return arrays | _targets(samples, tokenizer, encoding.tokenizer, pad), None
    if encoding.masked is not None:
        return arrays | _masked(arrays, encoded, tokenizer, encoding), None
    if samples[0].label is None:
        return arrays, None
    names = _class_names(samples, encoding.tokenizer.parent)
    return arrays | {LABEL: _labels(samples, encoded, names)}, names


def _encode(tokenizer: Tokenizer, samples: Sequence[Sample]) -> list[TokenizerEncoding]:
    has_words = isinstance(samples[0].text, list)
    mixed = next((s for s in samples if isinstance(s.text, list) != has_words), None)
    if mixed is not None:
        raise DataError(f"{mixed.where}: a text among lists of words, or the reverse")
    texts: list[Any] = [
        sample.text if sample.pair is None else (sample.text, sample.pair) for sample in samples
    ]
    encoded: list[TokenizerEncoding] = tokenizer.encode_batch(texts, is_pretokenized=has_words)
    return encoded


def _types(encoding: TokenizerEncoding) -> list[int]:
    """Return 0 for tokens of the first text and 1 for those of the second."""
    return [min(kind, 1) for kind in encoding.type_ids]


def _padded(rows: Sequence[Sequence[int]], value: int) -> Array:
    """Return rows of the length of the longest, int64 [N, T]."""
    array = np.full((len(rows), max(map(len, rows))), value, dtype=np.int64)
    for index, row in enumerate(rows):
        array[index, : len(row)] = row
    return array


def _targets(
    samples: Sequence[Sample], tokenizer: Tokenizer, file: Path, pad: int
) -> dict[str, Array]:
    """Return the decoder's tokens [N, D], and the token that follows each."""
    rows = [row.ids for row in tokenizer.encode_batch([sample.target for sample in samples])]
    start = first_tokens(file.parent)
    ignored = [_IGNORED] * (len(start) - 1)
    return {
        DECODER_TOKENS: _padded([[*start, *row[:-1]] for row in rows], pad),
        LABEL: _padded([[*ignored, *row] for row in rows], _IGNORED),
    }


def _masked(
    arrays: Mapping[str, Array],
    encoded: Sequence[TokenizerEncoding],
    tokenizer: Tokenizer,
    encoding: Encoding,
) -> dict[str, Array]:
    """Return tokens of which some are the mask token, and these tokens as labels.

    Special tokens are never masked; of every sample at least one other token is.
    """
    mask = _special_token(tokenizer, encoding.tokenizer, "mask")
    if mask is None:
        raise DataError(
            f"{encoding.tokenizer} has no mask token, which `masked` needs",
            remedy="name it as `mask_token` in tokenizer_config.json, or leave `masked` out",
        )
    tokens_NT = arrays[TOKENS].copy()
    open_NT = _padded([row.special_tokens_mask for row in encoded], 1) == 0
    random = np.random.default_rng(encoding.seed)
    draws_NT: Array = np.where(open_NT, random.random(tokens_NT.shape), np.inf)
    chosen_NT = draws_NT < (encoding.masked or 0)
    rows = np.arange(len(tokens_NT))
    first_N = draws_NT.argmin(axis=1)
    chosen_NT[rows, first_N] |= open_NT[rows, first_N]
    labels_NT = np.where(chosen_NT, tokens_NT, _IGNORED)
    tokens_NT[chosen_NT] = mask
    return {TOKENS: tokens_NT, LABEL: labels_NT}


def _special_token(tokenizer: Tokenizer, file: Path, kind: str) -> int | None:
    """Return the id of the padding or the mask token; None if the tokenizer has none."""
    content = _read(file.parent / _TOKENIZER_CONFIG).get(f"{kind}_token")
    if isinstance(content, dict):  # an AddedToken
        content = content.get("content")
    names = [content] if isinstance(content, str) else list(_USUAL[kind])
    found = (tokenizer.token_to_id(name) for name in names)
    token: int | None = next((token for token in found if token is not None), None)
    return token


def _class_names(samples: Sequence[Sample], folder: Path) -> tuple[str, ...] | None:
    """Return the names of the classes in the order of their numbers; None if labels are numbers.

    They are those of config.json if it has all of them, otherwise the sorted names of the data.

    Raises:
        DataError: some labels are names and some are numbers.
    """
    flat: list[Label] = [label for sample in samples for label in _each(sample.label)]
    named = [label for label in flat if isinstance(label, str)]
    if not named:
        return None
    if len(named) < len(flat):
        raise DataError(
            f"labels are names, such as {named[0]!r}, and numbers",
            remedy="write all of them as names, or as numbers of classes",
        )
    numbers = _read(folder / _CONFIG).get("label2id")
    if isinstance(numbers, dict) and set(named) <= numbers.keys():
        return tuple(sorted(numbers, key=lambda name: int(numbers[name])))
    return tuple(sorted(set(named)))


def _labels(
    samples: Sequence[Sample], encoded: Sequence[TokenizerEncoding], names: tuple[str, ...] | None
) -> Array:
    """Return labels: int64 [N] or [N, T], or float32 [N] if any of them is no whole number."""
    numbers = None if names is None else {name: number for number, name in enumerate(names)}

    def number(label: Label) -> int | float:
        return numbers[str(label)] if numbers is not None else label  # type: ignore[return-value]

    if any(isinstance(sample.label, list) for sample in samples):
        rows = []
        for sample, encoding in zip(samples, encoded, strict=True):
            labels = [int(number(label)) for label in _each(sample.label)]
            rows.append(_labels_of_tokens(labels, encoding.word_ids))
        return _padded(rows, _IGNORED)
    values = [
        number(sample.label) for sample in samples if not isinstance(sample.label, list | None)
    ]
    is_score = any(isinstance(value, float) for value in values)
    return np.array(values, dtype=np.float32 if is_score else np.int64)


def _labels_of_tokens(labels: Sequence[int], words: Sequence[int | None]) -> list[int]:
    """Return the label of a word for its first token, and -100 for all other tokens."""
    row, previous = [], None
    for word in words:
        row.append(_IGNORED if word is None or word == previous else labels[word])
        previous = word
    return row


def _each(label: Label | list[Label] | None) -> list[Label]:
    if label is None:
        return []
    return label if isinstance(label, list) else [label]


def _read(file: Path) -> dict[str, Any]:
    """Return the content of a file of JSON; nothing if it is missing or damaged."""
    if not file.is_file():
        return {}
    try:
        return read_json_object(file, DataError, remedy=None)
    except DataError:
        return {}
