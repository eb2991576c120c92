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

    @torch.inference_mode()
    def record(self, layer: nn.Module, sites: tuple[Site, ...], batch: int, run: RunBatch) -> Any:
        """Run a batch through the float block and return the result of ``run``.

        Records the input of each site or, where the site computes the result of a module, that
        result, and the residual streams.
        """
        inputs = {site.linears[0]: site.name for site in sites if site.block is None}
        results = {site.linears[0]: site.name for site in sites if site.block is not None}
        streams = {site.stream: site.name for site in sites if site.stream is not None}

        def before(name: str, arguments: tuple[Any, ...]) -> None:
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


def concatenate_calls(parts: Sequence[Tensor]) -> Tensor:
    """Return the positions of several calls, [N, C]."""
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))
