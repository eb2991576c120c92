"""Sampling from the most probable tokens, without a sort of the whole vocabulary.

Shapes: V vocabulary entries, C candidates.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

from compressor.generation.requests import SamplingOptions
from compressor.runtimes.token_rules import check_largest

Array = np.ndarray[Any, Any]
_BLOCK = 256
_FIRST_CANDIDATES = 1024


def sample(logits_V: Array, sampling: SamplingOptions, uniform: float, buffer_V: Array) -> int:
    """Return a token, drawn after temperature, top_k, top_p and min_p, in this order.

    Of probabilities that are equal in float32, the one of the smaller token counts as larger.

    Args:
        logits_V: float32; not changed, unless the buffer is the same array.
        sampling: the options; the temperature is not 0.
        uniform: a random number in [0, 1).
        buffer_V: memory for intermediate values, float32.

    Raises:
        NumericalError: a logit is NaN or infinite.
        UsageError: all logits are -inf.
    """
    largest = logits_V.max()
    check_largest(float(largest))
    with np.errstate(over="ignore"):
        weights_V = np.subtract(logits_V, largest, out=buffer_V)
        weights_V *= np.float32(1.0 / sampling.temperature)
    np.exp(weights_V, out=weights_V)  # 1 for the most probable token
    candidates = _candidates(weights_V, sampling)
    weights_C = weights_V if candidates is None else weights_V[candidates]
    if sampling.min_p > 0:
        weights_C *= weights_C >= np.float32(sampling.min_p)
    position = _draw(weights_C, uniform)
    return position if candidates is None else int(candidates[position])


def largest_tokens(values_V: Array, count: int) -> Array:
    """Return the tokens of the ``count`` largest values, in the order of the vocabulary.

    The largest values of ``count`` blocks are a bound that the others reach: few tokens are above.

    Args:
        values_V: logits or weights; of equal ones, the first count as larger.
        count: 1 to V.
    """
    full = len(values_V) // _BLOCK * _BLOCK
    blocks = values_V[:full].reshape(-1, _BLOCK).max(axis=1)
    if count <= len(blocks):
        bound = np.partition(blocks, -count)[-count]
        candidates = np.flatnonzero(values_V >= bound)
    else:
        candidates = np.arange(len(values_V))
    values_C = values_V[candidates]
    smallest = np.partition(values_C, -count)[-count]
    return candidates[_largest(values_C, smallest, count)]


def _candidates(weights_V: Array, sampling: SamplingOptions) -> Array | None:
    """Return the tokens of top_k and top_p, or those of min_p alone.

    None stands for all tokens; the weights of those that are excluded have been set to 0.
    """
    top_k, top_p = sampling.top_k, sampling.top_p
    if 0 < top_k < len(weights_V):
        candidates = largest_tokens(weights_V, top_k)
        if top_p == 1:
            return candidates
        weights_C = weights_V[candidates]
        return candidates[_prefix(weights_C, top_p * float(weights_C.sum()))]
    if top_p < 1:
        return _nucleus(weights_V, top_p)
    if sampling.min_p > 0:
        return np.flatnonzero(weights_V >= np.float32(sampling.min_p))
    return None


def _nucleus(weights_V: Array, top_p: float) -> Array | None:
    """Return the smallest set of tokens whose share of the sum reaches ``top_p``.

    It is first searched among the tokens whose share is not small, which are few. If it is not
    among them, the weights of all tokens outside of it are set to 0, and the result is None.
    """
    total = float(weights_V.sum())
    smallest = min((1 - top_p) * total / _FIRST_CANDIDATES, 1.0)
    candidates = np.flatnonzero(weights_V >= np.float32(smallest))
    weights_C = weights_V[candidates]
    if float(weights_C.sum()) >= top_p * total:
        return candidates[_prefix(weights_C, top_p * total)]
    kept_V = _prefix(weights_V, top_p * total)
    weights_V *= kept_V
    return None


def _prefix(weights_C: Array, needed: float) -> Array:
    """Return True for the fewest candidates whose weights have the sum ``needed``, bool [C]."""
    falling = np.sort(weights_C)[::-1]
    count = min(_position(falling, needed, "left") + 1, len(weights_C))
    return _largest(weights_C, falling[count - 1], count)


def _largest(weights_C: Array, smallest: np.float32, count: int) -> Array:
    """Return True for the candidates of the ``count`` largest weights, bool [C].

    Args:
        weights_C: the weights; of equal ones, the first count as larger.
        smallest: the last of the largest weights.
        count: their number.
    """
    kept_C: Array = weights_C >= smallest
    excess = int(np.count_nonzero(kept_C)) - count
    if excess:
        kept_C[np.flatnonzero(weights_C == smallest)[-excess:]] = False
    return kept_C


def _draw(weights_C: Array, uniform: float) -> int:
    """Return a position, with a probability proportional to its weight."""
    position = _position(weights_C, uniform * float(weights_C.sum()), "right")
    if position < len(weights_C) and weights_C[position] > 0:
        return position
    return int(np.flatnonzero(weights_C)[-1])  # the sums were rounded


def _position(weights_C: Array, target: float, side: Literal["left", "right"]) -> int:
    """Return the position with which the running sum reaches or exceeds a target, else the length.

    Running sums of blocks come first: they take less time than one over all weights.
    """
    full = len(weights_C) // _BLOCK * _BLOCK
    blocks = weights_C[:full].reshape(-1, _BLOCK).sum(axis=1).cumsum(dtype=np.float64)
    block = int(np.searchsorted(blocks, target, side))
    rest = target - (float(blocks[block - 1]) if block else 0.0)
    sums = weights_C[block * _BLOCK : (block + 1) * _BLOCK].cumsum(dtype=np.float64)
    return min(block * _BLOCK + int(np.searchsorted(sums, rest, side)), len(weights_C))
