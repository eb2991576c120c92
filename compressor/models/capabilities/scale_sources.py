"""Sources of a site's input, found by scaling what could compute it, and verified by folding.

A norm or linear layer is a source if dividing its channels divides those of the site's input, and
if multiplying the readers' weights then restores the block's output. Nothing is known of the
architecture: every proposal is tried. Shapes: N positions, I inputs of the site, R rows or values
of the source.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import takewhile
from typing import Any, cast

import torch
from torch import Tensor, nn

from compressor.models.capabilities.folding import expand_rows, fold_scale
from compressor.models.capabilities.linear_groups import Site, Source
from compressor.models.capabilities.observed_calls import (
    Call,
    ObservedRun,
    RunBlock,
    float_tensors,
)

_SCALES = (0.5, 2.0)
"""Smallest and largest random scale."""
_SAME_SCALE = 2e-3
"""Largest relative difference between an input's channel and its scaled form."""
_RESTORED = 0.01
"""Largest change of the output after folding, relative to that without the readers' part."""
_NOISE = 1e-6
"""Smallest change of the output, relative to its size, that proves anything in float32."""
_NORMS = 4
_LINEARS = 6
"""Norms and linear layers before a site that are tried, the nearest first."""
_OFFSETS = (0.0, 1.0)
"""Values that norms add to their weight."""


class SourceFinder:
    """Search for the sources of a block's sites.

    The weights of the block are changed and restored.
    """

    def __init__(self, block: nn.Module, run: RunBlock, observed: ObservedRun) -> None:
        """Take the block and a run of it.

        Args:
            block: float32, in eval mode.
            run: runs a batch; equal calls give equal results.
            observed: the calls of one such run.
        """
        self.block, self.run, self.observed = block, run, observed
        self.expected = [value.clone() for value in float_tensors(observed.result)]
        self._random = torch.Generator().manual_seed(0)

    @torch.no_grad()
    def find(self, site: Site) -> Source | None:
        """Return the source that is called last before the site; None if there is none."""
        first = self._first_call(site)
        before = list(takewhile(lambda call: call is not first, self.observed.calls))
        for source in [*self._norms(before, first), *self._rows(before, first)]:
            found = self._matching(site, source)
            if found is not None and self.is_unchanged(replace(site, source=found)):
                return found
        return None

    def _first_call(self, site: Site) -> Call:
        return next(call for call in self.observed.calls if call.name == site.linears[0])

    def _norms(self, before: Sequence[Call], first: Call) -> Iterator[Source]:
        """Yield norms that could compute the input: the one that returned it first."""
        inputs = _width(first)
        names = dict.fromkeys(
            call.name for call in reversed(before) if _norm_width(call.module, inputs)
        )
        direct = [call.name for call in before if call.output_key == first.input_key]
        for name in sorted(names, key=lambda name: name not in direct)[:_NORMS]:
            width = _norm_width(self.block.get_submodule(name), inputs)
            for offset in _OFFSETS:
                yield Source(name, "norm", offset, inputs // width, width)
            if name in direct:
                return  # what computed the input itself is found, whether it folds or not

    def _rows(self, before: Sequence[Call], first: Call) -> Iterator[Source]:
        """Yield rows of linear layers that could compute the channels, the last layers first."""
        inputs = _width(first)
        linears = {call.name: call.module for call in before if call.is_linear}
        tried = 0
        for name in reversed(linears):
            outputs = cast("nn.Linear", linears[name]).out_features
            layouts = list(_row_layouts(outputs, inputs))
            for rows in layouts:
                yield Source(name, "rows", 0.0, inputs // len(rows), 1, rows)
            tried += bool(layouts)
            if tried == _LINEARS:
                return

    def _matching(self, site: Site, source: Source) -> Source | None:
        """Return the source with the width of its blocks if it scales the input, else None."""
        width = len(source.rows) or source.block
        scale_R = self._random_scale(width)
        plain = replace(source, repeats=1, block=1)
        with restored_weights(self.block, [source.module]):
            fold_scale(self.block, plain, scale_R)
            base = _inputs_of_calls(self.observed, site.linears[0])
            scaled = self._inputs_again(site.linears[0], len(base))
        base_NI = torch.cat(base)
        if [value.shape for value in scaled] != [value.shape for value in base]:
            return None
        scaled_NI = torch.cat(scaled)
        for block in _divisors(width) if source.repeats > 1 else [1]:
            candidate = replace(source, block=block)
            scale_I = expand_rows(scale_R, candidate)
            if _is_same(scaled_NI * scale_I, base_NI):
                return self._canonical(candidate)
        return None

    def _inputs_again(self, name: str, calls: int) -> list[Tensor]:
        """Run the batch until the last call of a linear layer, and return its inputs, [N, I]."""
        inputs: list[Tensor] = []

        def record(_: nn.Module, arguments: tuple[Any, ...]) -> None:
            inputs.append(arguments[0].reshape(-1, arguments[0].shape[-1]).clone())
            if len(inputs) == calls:
                raise _SiteReachedError

        handle = self.block.get_submodule(name).register_forward_pre_hook(record)
        try:
            self.run()
        except _SiteReachedError:
            pass
        finally:
            handle.remove()
        return inputs

    def _canonical(self, source: Source) -> Source:
        """Return the source with no rows stated where they are the last of its layer."""
        if not source.rows:
            return source
        module = cast("nn.Linear", self.block.get_submodule(source.module))
        last = range(module.out_features - len(source.rows), module.out_features)
        return replace(source, rows=()) if source.rows == tuple(last) else source

    @torch.no_grad()
    def is_unchanged(self, *sites: Site) -> bool:
        """Return True if folding random scales into the sources leaves the output unchanged."""
        folded = [site for site in sites if site.source is not None]
        names = [name for site in folded for name in touched_layers(site)]
        with restored_weights(self.block, names):
            scales = []
            for site in folded:
                source = cast("Source", site.source)
                inputs = _linear(self.block, site.linears[0]).in_features
                scales.append(expand_rows(self._random_scale(inputs // source.repeats), source))
                fold_scale(self.block, source, scales[-1])
            half_way = self._change()
            for site, scale_I in zip(folded, scales, strict=True):
                for name in site.linears:
                    _linear(self.block, name).weight.data *= scale_I
            change = self._change()
        return half_way > _NOISE and change <= _RESTORED * half_way

    def _change(self) -> float:
        """Return the largest change of the output, relative to its size."""
        result = float_tensors(self.run())
        if [value.shape for value in result] != [value.shape for value in self.expected]:
            return float("inf")
        changes = [
            float((value - expected).abs().max() / expected.abs().max().clamp(min=1e-30))
            for value, expected in zip(result, self.expected, strict=True)
            if value.numel()
        ]
        return max(changes, default=0.0)

    def _random_scale(self, width: int) -> Tensor:
        """Return random scales whose logarithm is uniform, [R]."""
        low, high = torch.tensor(_SCALES).log()
        scale_R: Tensor = (low + (high - low) * torch.rand(width, generator=self._random)).exp()
        return scale_R


def touched_layers(site: Site) -> list[str]:
    """Return the modules whose weights folding changes."""
    source = cast("Source", site.source)
    return [source.module, *site.linears, *(name for name, _ in source.other_readers)]


@contextmanager
def restored_weights(block: nn.Module, names: Sequence[str]) -> Iterator[None]:
    """Restore the parameters of modules at the end."""
    parameters = [
        parameter
        for name in dict.fromkeys(names)
        for parameter in block.get_submodule(name).parameters(recurse=False)
    ]
    stored = [parameter.data for parameter in parameters]
    for parameter in parameters:
        parameter.data = parameter.data.clone()
    try:
        yield
    finally:
        for parameter, value in zip(parameters, stored, strict=True):
            parameter.data = value


class _SiteReachedError(Exception):
    """Ends a run once the inputs of a site are known."""


def _inputs_of_calls(observed: ObservedRun, name: str) -> list[Tensor]:
    """Return the inputs of a linear layer in each of its calls, [N, I]."""
    return [
        call.input.reshape(-1, call.input.shape[-1])
        for call in observed.calls
        if call.name == name and call.input is not None
    ]


def _is_same(scaled_NI: Tensor, base_NI: Tensor) -> bool:
    """Return True if every channel has the same values up to the noise of float32."""
    size_I = base_NI.abs().amax(dim=0)
    difference_I = (scaled_NI - base_NI).abs().amax(dim=0)
    floor = float(size_I.max()) * 1e-6
    return bool((difference_I <= _SAME_SCALE * size_I + floor).all()) and floor > 0


def _linear(block: nn.Module, name: str) -> nn.Linear:
    return cast("nn.Linear", block.get_submodule(name))


def _width(call: Call) -> int:
    return cast("nn.Linear", call.module).in_features


def _norm_width(module: nn.Module, inputs: int) -> int:
    """Return the width of a module that scales its channels by a vector; 0 if it does not."""
    weight = getattr(module, "weight", None)
    if not isinstance(weight, nn.Parameter) or weight.ndim != 1 or isinstance(module, nn.Linear):
        return 0
    bias = getattr(module, "bias", None)
    if bias is not None and bias.shape != weight.shape:
        return 0
    return 0 if inputs % len(weight) or len(weight) == 1 else len(weight)


def _row_layouts(outputs: int, inputs: int) -> Iterator[tuple[int, ...]]:
    """Yield the rows of a linear layer that may compute a site's channels, in their order.

    All rows, or with query heads that share a value head fewer than channels; the second or first
    half of two fused projections; the last rows of fused queries, keys and values; and the last
    rows of each head, or of each group of heads, where they are fused head by head.
    """
    if outputs <= inputs:
        if inputs % outputs == 0:
            yield tuple(range(outputs))
        return
    rest = outputs - inputs
    if rest == inputs:
        yield tuple(range(inputs, outputs))
        yield tuple(range(inputs))
    widths = [inputs]
    if rest % 2 == 0 and inputs % (rest // 2) == 0:
        widths = list(dict.fromkeys((rest // 2, inputs)))  # queries, keys and values
        yield tuple(range(outputs - rest // 2, outputs))
    for values in widths:
        for groups in _divisors(math.gcd(values, outputs)):
            width, stride = values // groups, outputs // groups
            if width > 1 and groups > 1:
                yield tuple(
                    (group + 1) * stride - width + channel
                    for group in range(groups)
                    for channel in range(width)
                )


def _divisors(number: int) -> list[int]:
    return [value for value in range(1, number + 1) if number % value == 0]
