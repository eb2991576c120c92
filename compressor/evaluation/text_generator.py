"""Greedy generation of an encoder-decoder on the samples of a data set."""

from __future__ import annotations

import numpy as np

from compressor.data.contract import Batch, Dataset
from compressor.errors import DataError, UsageError
from compressor.models.checkpoint.decoder_start import decoder_start
from compressor.models.checkpoint.generation_rules import read_generation_rules
from compressor.runtimes.decoding import EncoderDecoderOptions
from compressor.runtimes.formats import StoredModel
from compressor.runtimes.session import Array
from compressor.runtimes.token_generation import generate_tokens, read_first_tokens
from compressor.runtimes.token_rules import TokenRules

_MASK = "attention_mask"


class TextGenerator:
    """An encoder-decoder that generates the text of one sample after the other.

    Always the most probable token follows, among those that generation_config.json allows.
    """

    def __init__(
        self, model: StoredModel, dataset: Dataset, *, max_tokens: int, threads: int
    ) -> None:
        """Open the model.

        Args:
            model: a model that generates with a cache.
            dataset: the samples, which may state language and task.
            max_tokens: largest number of tokens of a text; fewer where the model takes fewer.
            threads: threads of the runtime.

        Raises:
            UsageError: the model does not generate, or has no tokens for language or task.
            DataError: the model has no encoder, or its files name no start token.
        """
        limits = model.format.generation_limits(model.path)
        if not limits.encoder_inputs:
            raise DataError(
                f"{model.path} has no encoder: it continues texts, and answers no samples",
                remedy="measure perplexity",
            )
        self._inputs = limits.encoder_inputs
        self._start = decoder_start(model.path, language=dataset.language, task=dataset.task)
        self._rules = read_generation_rules(model.path)
        first = len(self._start.tokens) + bool(self._start.languages)
        self._max_tokens = min(max_tokens, limits.context_length - first)
        if self._max_tokens < 1:
            raise UsageError(
                f"{model.path} starts with {first} tokens, and takes {limits.context_length}"
            )
        options = EncoderDecoderOptions(threads, first + self._max_tokens)
        self._decoder = model.format.open_encoder_decoder(model.path, options)

    def generate(self, batch: Batch) -> list[list[int]]:
        """Return the tokens of each sample, without those that start and end the text.

        Raises:
            DataError: inputs of the encoder are missing, or do not fit.
        """
        if missing := [name for name in self._inputs if name not in batch]:
            raise DataError(
                f"the samples lack inputs of the encoder: {', '.join(missing)}; they have "
                f"{', '.join(batch)}",
                remedy="name a data set that was made for this model",
            )
        arrays = {name: batch[name] for name in self._inputs}
        if _MASK in batch and _MASK not in arrays:
            rows = _without_padding(arrays, batch[_MASK])
        else:
            count = len(batch[self._inputs[0]])
            rows = [{name: array[[row]] for name, array in arrays.items()} for row in range(count)]
        return [self._generate(row) for row in rows]

    def _generate(self, arrays: dict[str, Array]) -> list[int]:
        self._decoder.encode({name: np.ascontiguousarray(a) for name, a in arrays.items()})
        prompt_tokens, logits_V = read_first_tokens(self._decoder, self._start)
        rules = TokenRules(
            self._rules, prompt_tokens, max_tokens=self._max_tokens, vocabulary=len(logits_V)
        )
        choose = rules.choose_most_probable
        tokens: list[int] = []
        forward = self._decoder.forward
        for token in generate_tokens(forward, logits_V, choose, self._max_tokens):
            if token in self._rules.eos_token_id:
                break
            tokens.append(token)
        return tokens


def _without_padding(arrays: Batch, mask_NT: Array) -> list[Batch]:
    """Return the arrays of each sample, [1, T, ...], cut to its length.

    Models of sound that take no mask would hear the padding.
    """
    lengths_N = mask_NT.sum(axis=1)
    return [
        {
            name: array[[row], :length] if array.shape[1] == mask_NT.shape[1] else array[[row]]
            for name, array in arrays.items()
        }
        for row, length in enumerate(lengths_N.tolist())
    ]
