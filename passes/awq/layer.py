"""One decoder layer rounded in place, site by site, each seeing what the rounded ones before it say.

Shapes: I inputs, O outputs of all linear layers of a site, N tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any, cast

import torch
from torch import Tensor, nn

from calibration.capture import hooked
from compressor.models.packed.description import WeightGrid
from compressor.models.packed.linear import PackedLinear
from compressor.models.transformers_checkpoint.linears import Site
from compressor.models.transformers_checkpoint.streaming import Arguments
from passes.awq.rounding import add_moments, mirrored
from passes.awq.samples import Captures, flat
from passes.awq.site import Choices, Seen, linear_of, round_site, weights_of

_OF_STREAM = 0.5
"""The part of a residual stream's own drift that what is added to it is to make up for, in that of other drift. What is left
is handed on, and made up for further on too."""

Batches = Callable[[], Iterator[tuple[int, Tensor, Arguments]]]
"""(number, hidden states [B, T, hidden], the layer's other arguments) of every batch, as the rounded layers before left them."""


class _ReachedError(Exception):
    """The forward pass came to the layer that was waited for."""


class Exact:
    """A float layer's activations on what the float layers before it said: what the rounded one's are held against."""

    def __init__(self, captures: Captures) -> None:
        self.captures = captures

    @torch.inference_mode()
    def remember(
        self, layer: nn.Module, sites: tuple[Site, ...], batch: int, hidden: Tensor, arguments: Arguments
    ) -> None:
        """Run the layer; keep what enters each site, or what its block says, the residual streams, and the result."""
        sources = {site.linears[0]: site.name for site in sites if site.block is None}
        blocks = {site.linears[0]: site.name for site in sites if site.block is not None}
        streams = streams_of(sites)

        def before(name: str, inputs: tuple[Any, ...]) -> None:
            for names, what in ((sources, "input"), (streams, "stream")):
                if name in names:
                    self.captures.put(f"exact {what} {names[name]} {batch}", flat(inputs[0]))

        def after(name: str, _: tuple[Any, ...], result: Tensor) -> None:
            if name in blocks:
                self.captures.put(f"exact output {blocks[name]} {batch}", flat(result))

        with hooked(layer, {**sources, **blocks, **streams}, before=before, after=after):
            self.captures.put(f"exact result {batch}", result_of(layer, hidden, arguments))

    def input(self, site: Site, batch: int) -> Tensor:
        """[N, I]."""
        return self.captures.get(f"exact input {site.name} {batch}")

    def output(self, site: Site, batch: int) -> Tensor:
        """[N, O]."""
        return self.captures.get(f"exact output {site.name} {batch}")

    def stream(self, site: Site, batch: int) -> Tensor:
        """What the site's result is added to, [N, O]."""
        return self.captures.get(f"exact stream {site.name} {batch}")

    def result(self, batch: int) -> Tensor:
        """The layer's, [B, T, hidden]."""
        return self.captures.get(f"exact result {batch}")


def streams_of(sites: tuple[Site, ...]) -> dict[str, str]:
    """The norms that read the residual stream that a site's result is added to, to the name of that site."""
    norms = [site.source.module for site in sites if site.source.kind == "norm"]
    return dict(zip(norms, (site.name for site in sites if site.adds), strict=False))


def result_of(layer: nn.Module, hidden: Tensor, arguments: Arguments) -> Tensor:
    """What a layer makes of hidden states, [B, T, hidden]."""
    args, kwargs = arguments
    with torch.inference_mode():
        found = layer(hidden, *args, **kwargs)
    result: Tensor = found[0] if isinstance(found, tuple) else found
    return result


class LayerRounding:
    """Rounds the linear layers of one decoder layer, in place; each sees what the rounded ones before it say.

    A block that is done is not run again: its results are kept.
    """

    def __init__(
        self,
        layer: nn.Module,
        sites: tuple[Site, ...],
        batches: Batches,
        meant: Sequence[Tensor | None],
        captures: Captures,
        exact: Exact | None,
        grids: Mapping[str, WeightGrid],
        choices: Choices,
    ) -> None:
        """Round the vectors already.

        Args:
            layer: a decoder layer, float32.
            sites: its linear layers, in the order in which they are computed.
            batches: what enters it.
            meant: of each batch, the positions that count, bool [B·T]; None where all do.
            captures: keeps what may be large.
            exact: what the float layer said, where drift is made up for.
            grids: of each site, by its name.
            choices: how.
        """
        self.layer, self.sites, self.batches, self.meant, self.captures = layer, sites, batches, meant, captures
        self.exact, self.grids, self.choices = exact, grids, choices
        self.packed: dict[str, PackedLinear] = {}
        """By the linear layer's name in the decoder layer."""
        self.report: list[dict[str, Any]] = []
        """A row for each linear layer."""
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
            if site.block is not None:
                self._keep_results(site, scale_I)

    def result(self, number: int, hidden: Tensor, arguments: Arguments) -> Tensor:
        """What the rounded layer makes of a batch, [B, T, hidden]."""
        with self._kept(number):
            return result_of(self.layer, hidden, arguments)

    def _keep_results(self, site: Site, scale_I: Tensor) -> None:
        """A block is done: its results are those of its last layer, scales that were folded included."""
        for number, hidden, _ in self.batches():
            key = f"input {site.name} {number}"
            result = linear_of(self.layer, site.linears[0])(self.captures.get(key) / scale_I)
            self.captures.put(f"result {site.name} {number}", result.view(*hidden.shape[:-1], -1))
            self.captures.drop(key)
        self._done.append(site)

    @contextmanager
    def _kept(self, number: int) -> Iterator[None]:
        """While it lasts, blocks that are done answer with what they said of this batch."""

        def answer(site: Site) -> Callable[..., Any]:
            kept = self.captures.get(f"result {site.name} {number}")
            return lambda *_, **__: (kept, None) if site.with_weights else kept

        modules = [self.layer.get_submodule(str(site.block)) for site in self._done]
        for site, module in zip(self._done, modules, strict=True):
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
        drift = torch.zeros(inputs, inputs if of_input else outputs) if self.exact is not None else None
        stream = next((name for name, at in streams_of(self.sites).items() if at == site.name), None)
        tokens = 0
        for number, hidden, arguments in self.batches():
            got = self._reach(site, stream, number, hidden, arguments)
            x_NI = got[site.linears[0]]
            off_NO = None if drift is None else self._off(site, weight_IO, number, x_NI, got.get(stream or ""))
            if not of_input:
                self.captures.put(f"input {site.name} {number}", x_NI)
            if (meant := self.meant[number]) is not None:
                x_NI, off_NO = x_NI[meant], None if off_NO is None else off_NO[meant]
            add_moments(gram_II, x_NI)
            magnitude_I += x_NI.abs().sum(dim=0)
            tokens += len(x_NI)
            if drift is not None and off_NO is not None:
                drift.addmm_(x_NI.T, off_NO)
        return Seen(mirrored(gram_II), magnitude_I / max(tokens, 1), drift, of_input)

    def _off(self, site: Site, weight_IO: Tensor, number: int, x_NI: Tensor, stream_NO: Tensor | None) -> Tensor:
        """What should enter the site, less what does; or, of a block's last layer, what should come out, less what does."""
        exact = cast("Exact", self.exact)
        if site.block is None:
            return exact.input(site, number) - x_NI
        off = exact.output(site, number) - x_NI @ weight_IO
        bias = linear_of(self.layer, site.linears[0]).bias
        if bias is not None:
            off -= bias
        if stream_NO is not None:
            off.add_(exact.stream(site, number) - stream_NO, alpha=_OF_STREAM)
        return off

    def _reach(
        self, site: Site, stream: str | None, number: int, hidden: Tensor, arguments: Arguments
    ) -> dict[str, Tensor]:
        """What enters the site's linear layers, [N, I], and the norm that reads its stream; nothing after them is run."""
        got: dict[str, Tensor] = {}

        def see(name: str, given: tuple[Any, ...]) -> None:
            got[name] = flat(given[0])
            if name == site.linears[0]:
                raise _ReachedError

        names = (site.linears[0], *([stream] if stream is not None else []))
        with suppress(_ReachedError), self._kept(number), hooked(self.layer, names, before=see):
            result_of(self.layer, hidden, arguments)
        return got
