"""Activations of the float model that quantized blocks are compared with.

Shapes: I inputs, O outputs of a site, N positions of all calls of a batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from calibration.capture import forward_hooks
from compressor.models.capabilities.linear_groups import Site
from passes.awq.activations import Captures, flatten_positions

RunBatch = Callable[[], Any]
"""Runs a batch through a block, or through the whole model that the block is part of."""


class FloatReference:
    """Activations of a float block on the results of the float layers before it."""

    def __init__(self, captures: Captures) -> None:
        self.captures = captures
        self._calls: dict[str, int] = {}
        """Number of calls by key."""
        self._tokens: dict[tuple[str, int], Tensor] = {}
        """Site of an expert and batch to the tokens that reach it."""

    @torch.inference_mode()
    def record(self, layer: nn.Module, sites: tuple[Site, ...], batch: int, run: RunBatch) -> Any:
        """Run a batch through the float block and return the result of ``run``.

        Records the input of each site or, where the site computes the result of a module, that
        result, and the residual streams.
        """
        inputs = {site.linears[0]: site.name for site in sites if site.block is None}
        results = {site.linears[0]: site.name for site in sites if site.block is not None}
        streams = {site.stream: site.name for site in sites if site.stream is not None}

        routed = {site.linears[0]: site for site in sites if site.routing is not None}

        def before(name: str, arguments: tuple[Any, ...]) -> None:
            if name in routed:
                self._tokens[routed[name].name, batch] = routed_tokens(layer, routed[name])
            if name in inputs:
                self._put(f"exact input {inputs[name]} {batch}", arguments[0])
            if name in streams:
                self._put(f"exact stream {streams[name]} {batch}", arguments[0])

        def after(name: str, _: tuple[Any, ...], result: Tensor) -> None:
            if name in results:
                self._put(f"exact output {results[name]} {batch}", result)

        names = {**inputs, **results, **streams}
        with forward_hooks(layer, names, before=before, after=after):
            return run()

    def input(self, site: Site, batch: int) -> Tensor:
        """Return the input of a site, [N, I]."""
        return self._get(f"exact input {site.name} {batch}")

    def input_of_tokens(self, site: Site, batch: int, tokens_N: Tensor, x_NI: Tensor) -> Tensor:
        """Return the input of an expert in the order of other tokens, [N, I].

        Args:
            site: of an expert.
            batch: number of the batch.
            tokens_N: the tokens; the float model may have sent others to the expert.
            x_NI: rows for tokens that do not reach the expert in the float model.
        """
        exact_MI, exact_tokens_M = self.input(site, batch), self._tokens[site.name, batch]
        last = max((int(t.max()) for t in (tokens_N, exact_tokens_M) if len(t)), default=0)
        row_of = torch.full((last + 1,), -1)
        row_of[exact_tokens_M] = torch.arange(len(exact_tokens_M))
        rows_N = row_of[tokens_N]
        is_shared_N = rows_N >= 0
        result = x_NI.clone()
        result[is_shared_N] = exact_MI[rows_N[is_shared_N]]
        return result

    def output(self, site: Site, batch: int) -> Tensor:
        """Return the result of a site, [N, O]."""
        return self._get(f"exact output {site.name} {batch}")

    def stream(self, site: Site, batch: int) -> Tensor:
        """Return the residual stream to which the result of a site is added, [N, O]."""
        return self._get(f"exact stream {site.name} {batch}")

    def _put(self, key: str, value: Tensor) -> None:
        call = self._calls[key] = self._calls.get(key, 0) + 1
        self.captures.put(f"{key} {call}", flatten_positions(value))

    def _get(self, key: str) -> Tensor:
        calls = range(1, self._calls[key] + 1)
        return concatenate_calls([self.captures.get(f"{key} {call}") for call in calls])


def routed_tokens(layer: nn.Module, site: Site) -> Tensor:
    """Return the tokens that the last forward pass sent to the expert of a site."""
    assert site.routing is not None  # noqa: S101 - the caller has checked
    experts: Any = layer.get_submodule(site.routing.module)
    tokens: Tensor = experts.token_indices[site.routing.expert]
    return tokens


def concatenate_calls(parts: Sequence[Tensor]) -> Tensor:
    """Return the positions of several calls, [N, C]."""
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))
