"""Tests in torch of how a class uses its cache, before it is traced.

Classes exist that keep a part of their state in the module, or that read the cache in another way
than they write it. Their cache as inputs and outputs of a graph would give wrong results. Others
compute several tokens by a loop, which a trace repeats for each of its rounds.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers.cache_utils import Cache

from compressor.graphs.decoder.interface import INPUT_IDS
from compressor.models.families.transformers.generic.generation import cache_argument, new_cache

WITHOUT_CACHE = "the class is exported without a cache, and does not generate in ONNX Runtime"
NO_CACHE = f"{WITHOUT_CACHE}: from it, it does not continue as from its tokens"
_TOKENS = 24
_MAX_ABS = 1e-2
"""Largest difference relative to the largest logit."""
_LOOPING = 2
"""Ratio of the operations for three tokens to those for one, beyond which a class loops."""


def continues_from_cache(
    module: Any,
    window: Mapping[str, np.ndarray[Any, Any]],
    *,
    tokens: str = INPUT_IDS,
    **options: Any,
) -> bool:
    """Return True if logits behind a cached prefix equal those of the whole window.

    The prefix is copied into a fresh cache, as a graph that is given the cache's tensors has it.

    Args:
        module: a class that generates, in float32.
        window: a sample of tokens, [1, T].
        tokens: name of the tokens whose keys and values are cached.
        options: further arguments of every call, such as those of an encoder.
    """
    ids_1T = torch.from_numpy(window[tokens][:, :_TOKENS].astype(np.int64))
    half, argument = max(ids_1T.shape[1] // 2, 1), str(cache_argument(module))

    def logits(part_1T: torch.Tensor, cache: Cache | None) -> torch.Tensor:
        cached = {} if cache is None else {argument: cache}
        arguments = {tokens: part_1T, **cached, **options}
        result: torch.Tensor = module(**arguments, use_cache=cache is not None).logits
        return result

    cache = new_cache(module)
    with torch.inference_mode():
        expected = logits(ids_1T, None)[:, half:]
        logits(ids_1T[:, :half], cache)
        logits(ids_1T.flip(1), new_cache(module))  # would change a state in the module
        actual = [logits(ids_1T[:, [index]], cache) for index in range(half, ids_1T.shape[1])]
    if not actual:
        return True
    delta = (torch.cat(actual, dim=1) - expected).abs().max()
    return bool(delta <= _MAX_ABS * expected.abs().max())


def loops_over_tokens(module: Any, window: Mapping[str, np.ndarray[Any, Any]]) -> bool:
    """Return True if a class is traced to many more operations for several tokens than for one.

    Args:
        module: a class that generates.
        window: a sample of tokens, `input_ids` [1, T].
    """
    ids_1T = torch.from_numpy(window[INPUT_IDS][:, :5].astype(np.int64))
    argument = str(cache_argument(module))
    counts: list[int] = []
    for tokens in (1, 3):
        cache = new_cache(module)
        with torch.inference_mode():
            module(ids_1T[:, :2], **{argument: cache}, use_cache=True)
            with _as_exporting(), _Operations() as operations:
                module(ids_1T[:, 2 : 2 + tokens], **{argument: cache}, use_cache=True)
        counts.append(operations.count)
    return counts[1] > _LOOPING * counts[0]


class _Operations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the operations of torch."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        self.count += 1
        return func(*args, **(kwargs or {}))


@contextmanager
def _as_exporting() -> Iterator[None]:
    """Make classes compute as they do while they are exported."""
    compiler: Any = torch.compiler
    before = compiler._is_exporting_flag
    compiler._is_exporting_flag = True
    try:
        yield
    finally:
        compiler._is_exporting_flag = before
