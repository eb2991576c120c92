"""Quantization of a block, site by site, each calibrated on the quantized sites before it.

A block is a decoder layer that runs alone, or a part of a model that runs as a whole; the caller
provides what runs a batch, which may call each linear layer several times. Shapes: I inputs, O
outputs of all linear layers of a site, N positions of all calls of a batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from calibration.capture import forward_hooks
from compressor.models.capabilities.folding import divisors_of_rows
from compressor.models.capabilities.linear_groups import Site, Source
from compressor.models.quantized.packed_linear import PackedLinear
from compressor.models.quantized.weight_grid import WeightGrid
from passes.awq.activations import Captures, flatten_positions
from passes.awq.bias_correction import SampleMeans
from passes.awq.float_reference import (
    FloatReference,
    RunBatch,
    concatenate_calls,
    routed_tokens,
)
from passes.awq.input_statistics import ErrorMoments, InputStatistics
from passes.awq.linear_layers import concatenate_weights, get_linear
from passes.awq.settings import QuantizationSettings
from passes.awq.site import quantize_site
from passes.awq.valid_positions import SitePositions
from passes.common.weight_rounding.hessian import add_moments, mirror_upper

MIN_POSITIONS = 4
"""Positions below which weights are rounded to nearest: methods that few inputs determine lose more
on other samples than they win. Experts need as many as they have inputs."""
_STREAM_FRACTION = 0.5
"""Fraction of the residual stream's own error that what is added to it compensates. The rest
remains in the stream, and later layers compensate it too."""


@dataclass(frozen=True, slots=True)
class BlockCalibration:
    """Calibration batches of a block."""

    batches: Callable[[], Iterator[tuple[int, RunBatch]]]
    """Yields the number of every batch and what runs it through the quantized model."""
    positions: SitePositions
    captures: Captures
    """Storage for activations."""
    reference: FloatReference | None
    """Activations of the float block; None if the error of earlier layers is not compensated."""


class _SiteReachedError(Exception):
    """Ends a forward pass at the last call of a site's linear layers."""


class BlockQuantizer:
    """Quantizes the linear layers of one block in place.

    Modules whose sites are done are not run again: their results are stored.
    """

    def __init__(
        self,
        layer: nn.Module,
        sites: tuple[Site, ...],
        grids: Mapping[str, WeightGrid],
        settings: QuantizationSettings,
        calibration: BlockCalibration,
    ) -> None:
        """Round the vectors of the block to the dtype of the file.

        Args:
            layer: the block, float32.
            sites: its sites in the order of computation.
            grids: the grid of each site by its name.
            settings: methods and dtypes.
            calibration: batches and storage.
        """
        self.layer, self.sites, self.grids = layer, sites, grids
        self.settings, self.calibration = settings, calibration
        self.packed: dict[str, PackedLinear] = {}
        """Packed layers by their name in the block."""
        self.report: list[dict[str, Any]] = []
        """A row for each linear layer."""
        self._call_shapes: dict[tuple[str, int], list[torch.Size]] = {}
        """Site and batch to the shape of each call without its last axis, where results are
        stored."""
        self._divisors: dict[str, Tensor] = {}
        """Linear layers without a source of their own to the divisors of their inputs, [I]: other
        sites' scales have been folded into the norm before them."""
        self._done: list[Site] = []
        self._tokens: dict[tuple[str, int], Tensor] = {}
        """Site of an expert and batch to the tokens whose input is stored."""
        for vector in [parameter for parameter in layer.parameters() if parameter.ndim == 1]:
            vector.data = vector.data.to(settings.float_dtype).float()

    @torch.inference_mode()
    def quantize(self) -> None:
        """Quantize all sites."""
        for site in self.sites:
            statistics = self._measure(site)
            inputs, is_expert = len(statistics.magnitude_I), site.routing is not None
            has_few = statistics.positions < (inputs if is_expert else MIN_POSITIONS)
            settings = self.settings.nearest() if has_few else self.settings
            facts = {}
            if has_few or is_expert:
                facts = {"tokens": statistics.positions, "rounded_to_nearest": has_few}
            rows, scale_I = quantize_site(
                self.layer, site, statistics, self.grids[site.name], settings, self.packed
            )
            self.report += [row | facts for row in rows]
            if site.source is not None and site.source.kind == "rows":
                self._divide_stored_results(site.source, scale_I)
            for name, first in site.source.other_readers if site.source is not None else ():
                ones_I = torch.ones(get_linear(self.layer, name).in_features)
                self._divisors.setdefault(name, ones_I)[first : first + len(scale_I)] *= scale_I
            if site.block is not None:
                self._store_results(site, scale_I)

    def run(self, batch: int, run: RunBatch) -> Any:
        """Return the result of ``run`` on a batch with the quantized block."""
        with self._stored_results(batch):
            return run()

    def _store_results(self, site: Site, scale_I: Tensor) -> None:
        """Store the results of the module that the site completes, which are its own results."""
        captures = self.calibration.captures
        for batch in [batch for name, batch in self._call_shapes if name == site.name]:
            key = f"input {site.name} {batch}"
            linear = get_linear(self.layer, site.linears[0])
            captures.put(f"result {site.name} {batch}", linear(captures.get(key) / scale_I))
            captures.drop(key)
        self._done.append(site)

    def _divide_stored_results(self, source: Source, scale_I: Tensor) -> None:
        """Divide the stored results of the linear layer into which a scale was folded."""
        captures = self.calibration.captures
        divisors_O = divisors_of_rows(self.layer, source, scale_I)
        done = {site.name for site in self._done if source.module in site.linears}
        for name, batch in self._call_shapes:
            if name in done:
                key = f"result {name} {batch}"
                result_NO = captures.get(key)
                captures.drop(key)
                captures.put(key, result_NO / divisors_O)

    @contextmanager
    def _stored_results(self, batch: int) -> Iterator[None]:
        """Let modules that are done return their stored results of a batch, call by call."""

        def replay(site: Site) -> Callable[..., Any]:
            shapes = self._call_shapes[site.name, batch]
            result_NO = self.calibration.captures.get(f"result {site.name} {batch}")
            parts = torch.split(result_NO, [shape.numel() for shape in shapes])
            # Copies, because the block may add to them in place.
            calls = iter(
                [part.view(*shape, -1).clone() for part, shape in zip(parts, shapes, strict=True)]
            )
            return lambda *_, **__: (next(calls), None) if site.with_weights else next(calls)

        done = [site for site in self._done if (site.name, batch) in self._call_shapes]
        modules = [self.layer.get_submodule(str(site.block)) for site in done]
        for site, module in zip(done, modules, strict=True):
            module.forward = replay(site)
        try:
            yield
        finally:
            for module in modules:
                del module.forward

    def _measure(self, site: Site) -> InputStatistics:
        """Run all batches as far as the site and return the statistics of its input."""
        calibration = self.calibration
        weight_IO = concatenate_weights(self.layer, site)
        inputs, outputs = weight_IO.shape
        moments_II, magnitude_I = torch.zeros(inputs, inputs), torch.zeros(inputs)
        # Unless the site completes a module, Xᵀ(X* − X) is in general the smaller matrix.
        is_of_input = site.block is None
        error = None
        if calibration.reference is not None:
            targets = inputs if is_of_input else outputs
            error = ErrorMoments(torch.zeros(inputs, targets), torch.zeros(targets), is_of_input)
        positions, means = 0, None
        has_bias = any(get_linear(self.layer, name).bias is not None for name in site.linears)
        if error is not None and has_bias and site.routing is None:
            means = SampleMeans()
        if site.routing is not None and site.name not in {name for name, _ in self._tokens}:
            self._store_stage(site)
        for batch, run in calibration.batches():
            x_NI, stream_NO = self._reach(site, batch, run)
            if x_NI is None:
                continue
            error_N = self._error(site, weight_IO, batch, x_NI, stream_NO)
            if not is_of_input:
                calibration.captures.put(f"input {site.name} {batch}", x_NI)
            valid_N = self._valid(site, batch, x_NI)
            if valid_N is not None:
                x_NI, error_N = x_NI[valid_N], None if error_N is None else error_N[valid_N]
            add_moments(moments_II, x_NI)
            magnitude_I += x_NI.abs().sum(dim=0)
            positions += len(x_NI)
            if error is not None and error_N is not None:
                error.matrix.addmm_(x_NI.T, error_N)
                error.squares.add_(torch.linalg.vector_norm(error_N, dim=0).square())
                if means is not None:
                    means.add(x_NI, error_N)
        if not positions:  # no sample reaches the site: all inputs count alike
            moments_II.fill_diagonal_(1.0)
        magnitude_I /= max(positions, 1)
        return InputStatistics(mirror_upper(moments_II), magnitude_I, error, positions, means)

    def _valid(self, site: Site, batch: int, x_NI: Tensor) -> Tensor | None:
        """Return the positions of a site's inputs that count, bool [N]; None if all do."""
        valid_N = self.calibration.positions.valid(site, batch)
        if site.routing is None:
            return valid_N
        reached_N = x_NI.any(dim=1)  # Llama 4 gives experts zeros in place of other tokens
        return reached_N if valid_N is None else valid_N[self._tokens[site.name, batch]] & reached_N

    def _store_stage(self, site: Site) -> None:
        """Store the inputs of all experts that do not depend on each other, in one run."""
        stage = _stage(site)
        sites = {other.linears[0]: other for other in self.sites if _stage(other) == stage}
        for batch, run in self.calibration.batches():

            def record(name: str, arguments: tuple[Any, ...], batch: int = batch) -> None:
                routed = sites[name]
                self._tokens[routed.name, batch] = routed_tokens(self.layer, routed)
                value = flatten_positions(arguments[0])
                self.calibration.captures.put(f"routed {routed.name} {batch}", value)

            with self._stored_results(batch), forward_hooks(self.layer, sites, before=record):
                run()

    def _error(
        self, site: Site, weight_IO: Tensor, batch: int, x_NI: Tensor, stream_NO: Tensor | None
    ) -> Tensor | None:
        """Return the difference between float and quantized model at a site.

        Returns:
            [N, I] of the site's input; or [N, O] of its result where it completes a module, with a
            fraction of the residual stream's error. None if errors are not compensated.
        """
        reference = self.calibration.reference
        if reference is None:
            return None
        if site.block is None:
            divisors_I = self._divisors.get(site.linears[0])
            if site.routing is not None:
                tokens_N = self._tokens[site.name, batch]
                return reference.input_of_tokens(site, batch, tokens_N, x_NI) - x_NI
            exact_NI = reference.input(site, batch)
            return (exact_NI if divisors_I is None else exact_NI / divisors_I) - x_NI
        error_NO = reference.output(site, batch) - x_NI @ weight_IO
        bias = get_linear(self.layer, site.linears[0]).bias
        if bias is not None:
            error_NO -= bias
        if stream_NO is not None:
            error_NO.add_(reference.stream(site, batch) - stream_NO, alpha=_STREAM_FRACTION)
        return error_NO

    def _reach(self, site: Site, batch: int, run: RunBatch) -> tuple[Tensor | None, Tensor | None]:
        """Run a batch until the site's last call, and return its inputs and its residual stream.

        Returns:
            Inputs [N, I], None if the site is not called; stream [N, O], None if it has none.
        """
        if site.routing is not None:
            key = f"routed {site.name} {batch}"
            x_NI = self.calibration.captures.get(key)
            self.calibration.captures.drop(key)
            return x_NI, None
        first, calls = site.linears[0], self.calibration.positions.calls(site, batch)
        inputs: dict[str, list[Tensor]] = {
            name: [] for name in (first, site.stream) if name is not None
        }

        def record(name: str, arguments: tuple[Any, ...]) -> None:
            inputs[name].append(arguments[0])
            if name == first and len(inputs[name]) == calls:
                raise _SiteReachedError

        if not calls:
            return None, None
        hooks = forward_hooks(self.layer, inputs, before=record)
        with suppress(_SiteReachedError), self._stored_results(batch), hooks:
            run()
        if site.block is not None:
            self._call_shapes[site.name, batch] = [value.shape[:-1] for value in inputs[first]]
        x_NI = concatenate_calls([flatten_positions(value) for value in inputs[first]])
        if site.stream is None or not inputs[site.stream]:
            return x_NI, None
        return x_NI, concatenate_calls([flatten_positions(value) for value in inputs[site.stream]])


def _stage(site: Site) -> tuple[str, int] | None:
    """Return the module and stage of the site of an expert; None for other sites."""
    return None if site.routing is None else (site.routing.module, site.routing.stage)
