"""A block's linear layers rounded in place, site by site, each seeing what the rounded ones before it say.

A block is a decoder layer that runs alone, or a part of a model that runs as a whole: what runs it is given from outside, and
may call each linear layer several times.

Shapes: I inputs, O outputs of all linear layers of a site, N tokens of all calls.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn

from calibration.capture import forward_hooks
from compressor.models.capabilities.linear_groups import Site
from compressor.models.quantized.description import WeightGrid
from compressor.models.quantized.packed_linear import PackedLinear
from passes.awq.rounding import add_moments, mirrored
from passes.awq.samples import Captures, flat
from passes.awq.site import Choices, Seen, linear_of, round_site, weights_of

_OF_STREAM = 0.5
"""The part of a residual stream's own drift that what is added to it is to make up for, in that of other drift. What is left
is handed on, and made up for further on too."""

Run = Callable[[], Any]
"""Runs a batch through the block, or through all that it is a part of."""
Batches = Callable[[], Iterator[tuple[int, Run]]]
"""The number of every batch, and what runs it, from what the rounded layers before say."""


class Positions(Protocol):
    """Of each batch, what a site gets to see."""

    def calls(self, site: Site, batch: int) -> int:
        """How often its linear layers are called."""

    def meant(self, site: Site, batch: int) -> Tensor | None:
        """The positions that count in all these calls together, bool [N]; None where all do."""


class _ReachedError(Exception):
    """The forward pass came to the last call that was waited for."""


class Exact:
    """A float block's activations on what the float layers before it said: what the rounded one's are held against."""

    def __init__(self, captures: Captures) -> None:
        self.captures = captures
        self._calls: dict[str, int] = {}

    @torch.inference_mode()
    def remember(self, layer: nn.Module, sites: tuple[Site, ...], batch: int, run: Run) -> Any:
        """Run the batch; keep what enters each site, or what its block says, and the residual streams. What ``run`` says."""
        sources = {site.linears[0]: site.name for site in sites if site.block is None}
        blocks = {site.linears[0]: site.name for site in sites if site.block is not None}
        streams = streams_of(sites)

        def before(name: str, inputs: tuple[Any, ...]) -> None:
            for names, what in ((sources, "input"), (streams, "stream")):
                if name in names:
                    self._put(f"exact {what} {names[name]} {batch}", inputs[0])

        def after(name: str, _: tuple[Any, ...], result: Tensor) -> None:
            if name in blocks:
                self._put(f"exact output {blocks[name]} {batch}", result)

        with forward_hooks(layer, {**sources, **blocks, **streams}, before=before, after=after):
            return run()

    def input(self, site: Site, batch: int) -> Tensor:
        """[N, I]."""
        return self._get(f"exact input {site.name} {batch}")

    def output(self, site: Site, batch: int) -> Tensor:
        """[N, O]."""
        return self._get(f"exact output {site.name} {batch}")

    def stream(self, site: Site, batch: int) -> Tensor:
        """What the site's result is added to, [N, O]."""
        return self._get(f"exact stream {site.name} {batch}")

    def _put(self, key: str, value: Tensor) -> None:
        call = self._calls[key] = self._calls.get(key, 0) + 1
        self.captures.put(f"{key} {call}", flat(value))

    def _get(self, key: str) -> Tensor:
        return _joined([self.captures.get(f"{key} {call + 1}") for call in range(self._calls[key])])


def streams_of(sites: tuple[Site, ...]) -> dict[str, str]:
    """The modules that read the residual stream that a site's result is added to, to the name of that site."""
    return {site.stream: site.name for site in sites if site.stream is not None}


def _joined(parts: Sequence[Tensor]) -> Tensor:
    """What several calls brought, one below the other."""
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))


class LayerRounding:
    """Rounds the linear layers of one block, in place; each sees what the rounded ones before it say.

    A module that is done is not run again: its results are kept.
    """

    def __init__(
        self,
        layer: nn.Module,
        sites: tuple[Site, ...],
        batches: Batches,
        positions: Positions,
        captures: Captures,
        exact: Exact | None,
        grids: Mapping[str, WeightGrid],
        choices: Choices,
    ) -> None:
        """Round the vectors already.

        Args:
            layer: the block, float32.
            sites: its linear layers, in the order in which they are computed.
            batches: what runs it.
            positions: what each site gets to see of a batch.
            captures: keeps what may be large.
            exact: what the float block said, where drift is made up for.
            grids: of each site, by its name.
            choices: how.
        """
        self.layer, self.sites, self.batches, self.positions, self.captures = (
            layer,
            sites,
            batches,
            positions,
            captures,
        )
        self.exact, self.grids, self.choices = exact, grids, choices
        self.packed: dict[str, PackedLinear] = {}
        """By the linear layer's name in the block."""
        self.report: list[dict[str, Any]] = []
        """A row for each linear layer."""
        self._shapes: dict[tuple[str, int], list[torch.Size]] = {}
        """By site whose results are kept, and batch: of each call, without its last axis."""
        self._divided: dict[str, Tensor] = {}
        """By linear layer whose site has no source of its own: what the source of another has divided its inputs by, [I]."""
        self._done: list[Site] = []
        for vector in [one for one in layer.parameters() if one.ndim == 1]:
            vector.data = vector.data.to(choices.other).float()

    @torch.inference_mode()
    def run(self) -> None:
        """All sites."""
        for site in self.sites:
            rows, scale_I = round_site(
                self.layer, site, self._look(site), self.grids[site.name], self.choices, self.packed
            )
            self.report += rows
            for name, first in site.source.others if site.source is not None else ():
                ones_I = torch.ones(linear_of(self.layer, name).in_features)
                self._divided.setdefault(name, ones_I)[first : first + len(scale_I)] *= scale_I
            if site.block is not None:
                self._keep_results(site, scale_I)

    def result(self, number: int, run: Run) -> Any:
        """What a batch's ``run`` says with the rounded block."""
        with self._kept(number):
            return run()

    def _keep_results(self, site: Site, scale_I: Tensor) -> None:
        """A module is done: its results are those of its last layer, scales that were folded included."""
        for number in [batch for name, batch in self._shapes if name == site.name]:
            key = f"input {site.name} {number}"
            result_NO = linear_of(self.layer, site.linears[0])(self.captures.get(key) / scale_I)
            self.captures.put(f"result {site.name} {number}", result_NO)
            self.captures.drop(key)
        self._done.append(site)

    @contextmanager
    def _kept(self, number: int) -> Iterator[None]:
        """While it lasts, modules that are done answer with what they said of this batch, call by call."""

        def answer(site: Site) -> Callable[..., Any]:
            shapes = self._shapes[site.name, number]
            parts = torch.split(
                self.captures.get(f"result {site.name} {number}"),
                [shape.numel() for shape in shapes],
            )
            calls = iter([part.view(*shape, -1) for part, shape in zip(parts, shapes, strict=True)])
            return lambda *_, **__: (next(calls), None) if site.with_weights else next(calls)

        done = [site for site in self._done if (site.name, number) in self._shapes]
        modules = [self.layer.get_submodule(str(site.block)) for site in done]
        for site, module in zip(done, modules, strict=True):
            module.forward = answer(site)
        try:
            yield
        finally:
            for module in modules:
                del module.forward

    def _look(self, site: Site) -> Seen:
        """Run the samples as far as the site."""
        weight_IO = weights_of(self.layer, site)
        inputs, outputs = weight_IO.shape
        gram_II, magnitude_I = torch.zeros(inputs, inputs), torch.zeros(inputs)
        # Before many outputs, Xᵀ(X* − X) is the smaller matrix, and the weights come last.
        of_input = site.block is None
        drift = (
            torch.zeros(inputs, inputs if of_input else outputs) if self.exact is not None else None
        )
        tokens = 0
        for number, run in self.batches():
            x_NI, stream_NO = self._reach(site, number, run)
            if x_NI is None:
                continue
            off_NO = None if drift is None else self._off(site, weight_IO, number, x_NI, stream_NO)
            if not of_input:
                self.captures.put(f"input {site.name} {number}", x_NI)
            if (meant := self.positions.meant(site, number)) is not None:
                x_NI, off_NO = x_NI[meant], None if off_NO is None else off_NO[meant]
            add_moments(gram_II, x_NI)
            magnitude_I += x_NI.abs().sum(dim=0)
            tokens += len(x_NI)
            if drift is not None and off_NO is not None:
                drift.addmm_(x_NI.T, off_NO)
        if not tokens:  # no sample comes here: all inputs count alike
            gram_II.fill_diagonal_(1.0)
        return Seen(mirrored(gram_II), magnitude_I / max(tokens, 1), drift, of_input)

    def _off(
        self, site: Site, weight_IO: Tensor, number: int, x_NI: Tensor, stream_NO: Tensor | None
    ) -> Tensor:
        """What should enter the site, less what does; or, of a module's last layer, what should come out, less what does."""
        exact = cast("Exact", self.exact)
        if site.block is None:
            divided_I = self._divided.get(site.linears[0])
            exact_NI = exact.input(site, number)
            return (exact_NI if divided_I is None else exact_NI / divided_I) - x_NI
        off = exact.output(site, number) - x_NI @ weight_IO
        bias = linear_of(self.layer, site.linears[0]).bias
        if bias is not None:
            off -= bias
        if stream_NO is not None:
            off.add_(exact.stream(site, number) - stream_NO, alpha=_OF_STREAM)
        return off

    def _reach(self, site: Site, number: int, run: Run) -> tuple[Tensor | None, Tensor | None]:
        """What enters the site's linear layers, [N, I], and its stream, [N, O]; nothing after them is run."""
        first, wanted = site.linears[0], self.positions.calls(site, number)
        got: dict[str, list[Tensor]] = {
            name: [] for name in (first, site.stream) if name is not None
        }

        def see(name: str, given: tuple[Any, ...]) -> None:
            got[name].append(given[0])
            if name == first and len(got[name]) == wanted:
                raise _ReachedError

        if not wanted:
            return None, None
        with suppress(_ReachedError), self._kept(number), forward_hooks(self.layer, got, before=see):
            run()
        if site.block is not None:
            self._shapes[site.name, number] = [one.shape[:-1] for one in got[first]]
        streams = [flat(one) for one in got[site.stream]] if site.stream is not None else []
        return _joined([flat(one) for one in got[first]]), _joined(streams) if streams else None
