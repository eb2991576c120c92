"""Quantization of a site: the linear layers that read the same input.

Shapes: I inputs, O outputs of all linear layers of the site, P probed outputs, G groups of S
inputs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from compressor.models.capabilities.linear_groups import Site, Source
from compressor.models.quantized.packed_linear import PackedLinear
from compressor.models.quantized.weight_grid import WeightGrid
from passes.awq.bias_correction import reliable_mean
from passes.awq.config import WEIGHTS_PER_CHUNK
from passes.awq.input_statistics import ErrorMoments, InputStatistics
from passes.awq.linear_layers import concatenate_weights, get_linear
from passes.awq.scaling import Scaling, fold_into_source, relative_size, search_scales
from passes.awq.settings import QuantizationSettings
from passes.awq.shrinkage import Regression, Shrinkage, reliable_fraction, shrink_correlations
from passes.common.weight_rounding.grids import round_to_nearest, search_grids
from passes.common.weight_rounding.hessian import Hessian, squared_error
from passes.common.weight_rounding.rounding import quantize_weights

_TINY = 2.0**-100
_PROBES = 128
"""Outputs per linear layer on which errors are measured. Outputs contribute independently, so a
sample of them estimates the error of all."""


@dataclass(frozen=True, slots=True)
class _Probes:
    """Evenly spaced outputs of each linear layer of a site."""

    rows: dict[str, Tensor]
    """Linear layer to rows of its weight."""
    columns: Tensor
    """The same outputs among all of the site."""

    @classmethod
    def of(cls, layer: nn.Module, site: Site) -> _Probes:
        rows, columns, start = {}, [], 0
        for name in site.linears:
            outputs = get_linear(layer, name).out_features
            count = min(outputs, _PROBES)
            rows[name] = torch.arange(count) * outputs // count
            columns.append(rows[name] + start)
            start += outputs
        return cls(rows, torch.cat(columns))

    def by_linear(self) -> Iterator[tuple[str, slice]]:
        """Yield each linear layer with the range of its probes."""
        start = 0
        for name, rows in self.rows.items():
            yield name, slice(start, start + len(rows))
            start += len(rows)


def quantize_site(
    layer: nn.Module,
    site: Site,
    statistics: InputStatistics,
    grid: WeightGrid,
    settings: QuantizationSettings,
    packed: dict[str, PackedLinear],
) -> tuple[list[dict[str, Any]], Tensor]:
    """Scale the inputs of a site, compensate the error of earlier layers, and round the weights.

    Args:
        layer: the block that holds the linear layers; it continues with the quantized weights.
        site: names of the linear layers, and the source of their input.
        statistics: of the input; its matrices are overwritten.
        grid: bits, group size and symmetry.
        settings: methods and dtypes.
        packed: packed layers of the block so far; those of the site are added.

    Returns:
        A report row for each linear layer, and the divisor of each input channel, [I].
    """
    weight_IO = concatenate_weights(layer, site)
    probes = _Probes.of(layer, site)
    probe_IP = weight_IO[:, probes.columns]
    shrinkage = shrink_correlations(statistics.moments_II, statistics.positions)
    result_P = squared_error(statistics.moments_II, probe_IP).clamp(min=_TINY)
    nearest_P = _error_of_nearest(probe_IP, statistics, grid, settings)
    scaling = _search_scaling(weight_IO, probe_IP, statistics, site.source, grid, settings)
    if scaling.exponent and site.source is not None:
        fold_into_source(layer, site.source, scaling.scale_I, settings, packed)
        weight_IO.mul_(scaling.scale_I.unsqueeze(1))
        statistics.divide_inputs(scaling.scale_I)
    hessian = Hessian.from_moments(statistics.moments_II)
    probe_IP = weight_IO[:, probes.columns]
    compensation = _Compensation.of(statistics, hessian, shrinkage, probes, settings)
    parts = _quantize_chunks(weight_IO, hessian, compensation, grid, settings)
    _store_packed(layer, site, PackedLinear.concatenate(parts), packed)
    _correct_biases(layer, site, weight_IO, statistics, settings)
    error_P = _error_of_rounded(layer, probes, probe_IP, hessian)
    range_GP = _range_kept(probe_IP, probes, grid, packed)
    rows = [
        {
            "linear": name,
            "bits": grid.bits,
            "scale_exponent": round(scaling.exponent, 6),
            "correlation_shrinkage": round(shrinkage.share, 6),
            "error_compensation": round(compensation.strength, 6),
            "range": round(float(range_GP[:, part].mean()), 6),
            "nearest_error": round(float(nearest_P[part].sum() / result_P[part].sum()), 6),
            "error": round(float(error_P[part].sum() / result_P[part].sum()), 6),
        }
        for name, part in probes.by_linear()
    ]
    return rows, scaling.scale_I


def _correct_biases(
    layer: nn.Module,
    site: Site,
    weight_IO: Tensor,
    statistics: InputStatistics,
    settings: QuantizationSettings,
) -> None:
    """Add the reliable mean error of the rounded layers' results to their biases.

    With as many positions as inputs or more, weights compensate it better.
    """
    means, error = statistics.means, statistics.error
    if means is None or error is None or not means.counts_S or not settings.error_compensation:
        return
    if statistics.positions >= len(weight_IO):
        return
    inputs_SI, errors_ST = torch.stack(means.inputs_SI), torch.stack(means.errors_ST)
    start = 0
    for name in site.linears:
        linear = get_linear(layer, name)
        columns = slice(start, start + linear.out_features)
        start += linear.out_features
        if linear.bias is None:
            continue
        part_IO = weight_IO[:, columns]
        errors_SO = errors_ST @ part_IO if error.is_of_input else errors_ST[:, columns]
        errors_SO = errors_SO + inputs_SI @ (part_IO - linear.weight.T)
        bias_O = linear.bias + reliable_mean(errors_SO, means.counts_S)
        linear.bias.data = bias_O.to(settings.float_dtype).float()


def _search_scaling(
    weight_IO: Tensor,
    probe_IP: Tensor,
    statistics: InputStatistics,
    source: Source | None,
    grid: WeightGrid,
    settings: QuantizationSettings,
) -> Scaling:
    """Return the scales of the inputs; ones if scaling is off or the input has no source."""
    if not settings.scaling or source is None:
        return Scaling(torch.ones(len(weight_IO)), 0.0, 1.0)
    size_I = relative_size(weight_IO, grid.width(len(weight_IO)))
    return search_scales(probe_IP, size_I, statistics, source, grid, settings.scale_format)


def _error_of_nearest(
    probe_IP: Tensor, statistics: InputStatistics, grid: WeightGrid, settings: QuantizationSettings
) -> Tensor:
    """Return the squared error of rounding to nearest in the whole range of each group, [P]."""
    importance_I = torch.ones(len(probe_IP))
    grids = search_grids(probe_IP, importance_I, grid, settings.scale_format, candidates=1)
    return squared_error(statistics.moments_II, round_to_nearest(probe_IP, grids).sub_(probe_IP))


def _error_of_rounded(
    layer: nn.Module, probes: _Probes, probe_IP: Tensor, hessian: Hessian
) -> Tensor:
    """Return the squared error of the rounded weights, without damping, [P]."""
    weights = [get_linear(layer, name).weight[rows] for name, rows in probes.rows.items()]
    change_IP = torch.cat(weights).T - probe_IP
    damped_P = squared_error(hessian.matrix_II, change_IP)
    return damped_P - hessian.damping * change_IP.square().sum(dim=0)


def _range_kept(
    probe_IP: Tensor, probes: _Probes, grid: WeightGrid, packed: dict[str, PackedLinear]
) -> Tensor:
    """Return the range of each group's grid, divided by the range of its weights, [G, P]."""
    weight_GSP = probe_IP.view(-1, grid.width(len(probe_IP)), probe_IP.shape[1])
    high_GP, low_GP = weight_GSP.amax(dim=1).clamp(min=0), weight_GSP.amin(dim=1).clamp(max=0)
    scales = [packed[name].scales_OG[rows] for name, rows in probes.rows.items()]
    scale_GP = torch.cat(scales).T.float()
    return scale_GP * grid.highest / (high_GP - low_GP).clamp(min=_TINY)


@dataclass(frozen=True, slots=True)
class _Compensation:
    """Change of a site's weights that compensates the error of earlier layers."""

    error: ErrorMoments | None
    strength: float
    """Fraction of the error that is compensated: at most the config's, and at most what the samples
    tell reliably."""
    change_II: Tensor | None
    """H⁻¹·Xᵀ·(X* − X); None if the error is that of results."""

    @classmethod
    def of(
        cls,
        statistics: InputStatistics,
        hessian: Hessian,
        shrinkage: Shrinkage,
        probes: _Probes,
        settings: QuantizationSettings,
    ) -> _Compensation:
        error = statistics.error
        if error is None:
            return cls(None, 0.0, None)
        products_IT, squares_T = error.matrix, error.squares
        if not error.is_of_input:
            products_IT, squares_T = products_IT[:, probes.columns], squares_T[probes.columns]
        regression = Regression(products_IT, hessian.solve(products_IT), squares_T)
        reliable = reliable_fraction(regression, hessian, shrinkage, statistics.positions)
        change_II = regression.solution_IT if error.is_of_input else None
        return cls(error, min(settings.error_compensation, reliable), change_II)

    def target(self, part_IO: Tensor, columns: slice, hessian: Hessian) -> Tensor:
        """Return W + α·H⁻¹·Xᵀ·(error of the result), [I, O]: QEP, see ``ErrorMoments``.

        Args:
            part_IO: W, the weights of some outputs.
            columns: the range of those outputs.
            hessian: H.
        """
        if self.error is None:
            return part_IO
        if self.change_II is not None:
            return torch.addmm(part_IO, self.change_II, part_IO, alpha=self.strength)
        return hessian.solve(self.error.matrix[:, columns]).mul_(self.strength).add_(part_IO)


def _quantize_chunks(
    weight_IO: Tensor,
    hessian: Hessian,
    compensation: _Compensation,
    grid: WeightGrid,
    settings: QuantizationSettings,
) -> list[PackedLinear]:
    """Compensate the error of earlier layers and round, one range of outputs after another."""
    outputs = weight_IO.shape[1]
    size = max(1, WEIGHTS_PER_CHUNK // len(weight_IO))
    parts = []
    for start in range(0, outputs, size):
        columns = slice(start, min(start + size, outputs))
        part_IO = weight_IO[:, columns].contiguous()
        target_IO = compensation.target(part_IO, columns, hessian)
        packed = quantize_weights(
            part_IO, target_IO, hessian, grid, settings.scale_format, gptq=settings.gptq
        )
        parts.append(packed)
    return parts


def _store_packed(
    layer: nn.Module, site: Site, whole: PackedLinear, packed: dict[str, PackedLinear]
) -> None:
    """Divide packed weights among the site's layers, which continue with the quantized values."""
    start = 0
    for name in site.linears:
        linear = get_linear(layer, name)
        packed[name] = whole.rows(start, start + linear.out_features)
        linear.weight.data = packed[name].dequantize()
        start += linear.out_features
