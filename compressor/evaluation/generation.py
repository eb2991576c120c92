"""Speed and memory of text generation: the first token, the tokens after it, the cache.

Shapes: T tokens of a prompt, V vocabulary entries.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Literal

import numpy as np

from compressor.artifacts.manifest import Metric
from compressor.data.contract import Dataset
from compressor.errors import DataError, UsageError
from compressor.evaluation.intervals import quantile_interval
from compressor.evaluation.records import GenerationConfig, GenerationReport, Progress
from compressor.evaluation.resources import BackgroundLoad, peak_rss_bytes, reset_peak_rss
from compressor.runtimes.formats import StoredModel
from compressor.runtimes.rows import RowDecoder, RowOptions, SingleRow
from compressor.runtimes.session import Array
from compressor.runtimes.token_generation import generate_tokens

_TOKENS, _MASK = "input_ids", "attention_mask"


def measure_generation(
    model: StoredModel, dataset: Dataset, config: GenerationConfig, progress: Progress
) -> GenerationReport:
    """Generate from prompts of equal length, one after the other, and time each answer.

    A model that does not generate, or needs more than text, gives a report with the reason.

    Args:
        model: the model on disk.
        dataset: texts, as tokens.
        config: lengths, repeats and threads.
        progress: called after each answer.

    Raises:
        DataError: the data set has no or too few tokens, or tokens beyond the vocabulary.
        UsageError: prompt and answer exceed the context of the model.
        ModelError: the model cannot be opened.
        PassError: the runtime failed.
    """
    try:
        limits = model.format.generation_limits(model.path)
    except UsageError as error:
        return GenerationReport(reason=error.what.replace(str(model.path), "the artifact"))
    if limits.encoder_inputs:
        return GenerationReport(reason="the model has an encoder, and only decoders are timed")
    for what, remedy in config.context_problems(limits.context_length):
        raise UsageError(what, remedy=remedy)
    capacity = config.prompt_tokens + config.new_tokens
    prompts = select_prompts(dataset, config)
    reset_peak_rss()
    decoder = model.format.open_rows(model.path, RowOptions(config.threads, 1, capacity))
    _check_vocabulary(decoder, prompts, model)
    _answer(decoder, prompts[-1], config)
    load = BackgroundLoad()
    times = []
    for number, ids_T in enumerate(prompts, start=1):
        times.append(_answer(decoder, ids_T, config))
        progress("generation", number, len(prompts))
    first_ms = tuple(1e3 * first for first, _ in times)
    rates = tuple((config.new_tokens - 1) / rest for _, rest in times)
    return GenerationReport(
        runtime=model.format.runtime,
        prompt_tokens=config.prompt_tokens,
        new_tokens=config.new_tokens,
        threads=config.threads,
        metrics=(
            _median("first_token_ms", first_ms, "ms", "lower"),
            _median("tokens_per_second", rates, "tokens/s", "higher"),
            _size("kv_cache_bytes", decoder.cache_bytes(capacity)),
            _size("generation_peak_rss_bytes", peak_rss_bytes()),
        ),
        first_token_ms=first_ms,
        tokens_per_second=rates,
        other_cores=load.cores(),
    )


def _check_vocabulary(decoder: RowDecoder, prompts: Sequence[Array], model: StoredModel) -> None:
    largest = max(int(ids_T.max()) for ids_T in prompts)
    if largest >= decoder.vocabulary:
        raise DataError(
            f"the data set has the token {largest}; {model.path} has {decoder.vocabulary}",
            remedy="name a data set whose tokenizer is that of the model",
        )


def select_prompts(dataset: Dataset, config: GenerationConfig) -> list[Array]:
    """Return a prompt for each repeat, int64 [T], from samples that are spread over the data set.

    A sample that is shorter than a prompt is continued by the next one.

    Raises:
        DataError: the samples hold more than tokens, no tokens, or fewer than a prompt.
    """
    others = [name for name in dataset.input_names if name not in {_TOKENS, _MASK}]
    if others or _TOKENS not in dataset.input_names:
        raise DataError(
            f"generation is timed on texts, and the samples have {', '.join(dataset.input_names)}",
            remedy="name a data set of texts in `evaluate.generation.data`",
        )
    starts = np.linspace(0, len(dataset), config.repeats, endpoint=False).astype(np.int64)
    return [_prompt(dataset, start, config.prompt_tokens) for start in starts.tolist()]


def _prompt(dataset: Dataset, start: int, length: int) -> Array:
    rows: list[Array] = []
    for number in range(len(dataset)):
        index = np.array([(start + number) % len(dataset)], np.int64)
        batch = dataset.batch(index)
        ids_1T = batch[_TOKENS]
        rows.append(ids_1T[batch.get(_MASK, np.ones_like(ids_1T)) == 1])
        if sum(map(len, rows)) >= length:
            return np.concatenate(rows)[:length].astype(np.int64)
    raise DataError(
        f"the data set has {sum(map(len, rows))} tokens, fewer than `prompt_tokens` ({length})",
        remedy="name a larger data set in `evaluate.generation.data`, or lower `prompt_tokens`",
    )


def _answer(decoder: RowDecoder, ids_T: Array, config: GenerationConfig) -> tuple[float, float]:
    """Generate one answer; return the seconds to its first token, and those after it."""
    row = SingleRow(decoder)
    start = time.perf_counter()
    logits_V = row.forward(ids_T)
    tokens = generate_tokens(row.forward, logits_V, _most_probable, config.new_tokens)
    next(tokens)
    first = time.perf_counter()
    for _ in tokens:
        continue
    return first - start, time.perf_counter() - first


def _most_probable(logits_V: Array) -> int:
    return int(logits_V.argmax())


def _median(
    name: str, values: Sequence[float], unit: str, better: Literal["higher", "lower"]
) -> Metric:
    ordered = np.sort(np.asarray(values))
    low, high = quantile_interval(ordered, 0.5) or (None, None)
    return Metric(
        name=name,
        value=float(np.median(ordered)),
        unit=unit,
        better=better,
        samples=len(ordered),
        low=low,
        high=high,
    )


def _size(name: str, size_bytes: int) -> Metric:
    return Metric(name=name, value=float(size_bytes), unit="bytes", better="lower", samples=1)
