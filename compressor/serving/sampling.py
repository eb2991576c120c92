"""Sampling options of a request."""

from __future__ import annotations

from typing import Any

from compressor.generation.requests import SamplingOptions
from compressor.serving.api_errors import bad_request
from compressor.serving.fields import GenerationFields
from compressor.serving.limits import ServerLimits

_SEEDS = 1 << 63


def sampling_options(
    request: GenerationFields,
    limits: ServerLimits,
    *,
    max_tokens: int,
    top_logprobs: int | None,
    grammar: str | None,
    vocabulary: int,
    keep_special_tokens: bool,
) -> SamplingOptions:
    """Return the sampling options of a request.

    Defaults are OpenAI's: temperature 1, and no penalties.

    Args:
        request: the request.
        limits: bounds of the server.
        max_tokens: the largest number of tokens of the answer.
        top_logprobs: alternatives to report with each token, or None.
        grammar: the serialized grammar of the answer, or None.
        vocabulary: number of tokens that the model knows.
        keep_special_tokens: True if special tokens are part of the text.

    Raises:
        ApiError: 400; a field does not fit.
    """
    if len(request.stop_texts) > limits.max_stop_texts:
        raise bad_request(f"stop: more than {limits.max_stop_texts} texts", "stop")
    top_k = max(0, request.top_k or 0)
    if request.top_p == 0:
        top_k = 1
    min_tokens = request.min_tokens or 0
    if min_tokens > max_tokens:
        raise bad_request(
            f"min_tokens: {min_tokens}, and the answer may have {max_tokens}", "min_tokens"
        )
    return SamplingOptions(
        max_tokens=max_tokens,
        temperature=_value(request.temperature, 1.0),
        top_p=request.top_p or 1.0,
        top_k=top_k,
        min_p=_value(request.min_p, 0.0),
        frequency_penalty=_value(request.frequency_penalty, 0.0),
        presence_penalty=_value(request.presence_penalty, 0.0),
        repetition_penalty=request.repetition_penalty,
        logit_bias=_logit_bias(request, vocabulary),
        seed=None if request.seed is None else request.seed % _SEEDS,
        stop=request.stop_texts,
        stop_tokens=frozenset(request.stop_token_ids or ()),
        ignore_end=bool(request.ignore_eos),
        min_tokens=min_tokens,
        top_logprobs=top_logprobs,
        grammar=grammar,
        keep_special_tokens=keep_special_tokens or request.skip_special_tokens is False,
    )


def seed_of_choice(seed: int | None, choice: int) -> int | None:
    """Return the seed of one of several answers to a prompt."""
    return None if seed is None else (seed + choice) % _SEEDS


def _logit_bias(request: GenerationFields, vocabulary: int) -> dict[int, float]:
    result: dict[int, float] = {}
    for key, value in (request.logit_bias or {}).items():
        if not (key.isascii() and key.isdecimal()) or len(key) > 9 or int(key) >= vocabulary:
            raise bad_request(
                f"logit_bias: {key[:20]!r} is no token from 0 to {vocabulary - 1}", "logit_bias"
            )
        result[int(key)] = value
    return result


def _value(value: Any, default: float) -> float:
    return default if value is None else float(value)
