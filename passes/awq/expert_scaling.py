"""Scales of the channels that all experts of a layer read, folded into the norm before them.

The norm's output is read by the router, by every expert and by the network that all tokens pass.
One scale divides it, and multiplies the columns of all of them; each expert is weighed by the
tokens that reach it. Scales are powers of two: norm and router then hold the same values up to
their exponents, in any float type, and no token reaches another expert because a weight was
rounded. Shapes: N tokens of a sample, I inputs, P probed outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from calibration.capture import forward_hooks
from compressor.models.capabilities.linear_groups import Site
from compressor.models.capabilities.observed_calls import float_tensors
from compressor.models.families.transformers.experts.split import every_token_reaches
from compressor.models.quantized.weight_grid import WeightGrid
from passes.awq.activations import flatten_positions
from passes.awq.float_reference import RunBatch, routed_tokens
from passes.awq.linear_layers import get_linear
from passes.awq.scaling import relative_size
from passes.awq.settings import QuantizationSettings
from passes.common.weight_rounding.grids import round_to_nearest, search_grids

_EXPONENTS = tuple(step / 10 for step in range(10))
_TOKENS = 128
"""Tokens of a sample for each expert."""
_PROBES = 64
"""Outputs of a linear layer on which errors are measured."""
_RANGES = 6
_FLOOR = 1e-4
_RESTORED = 0.01
"""Largest change of the output after folding, relative to that of the norm alone."""


@dataclass(frozen=True, slots=True)
class ExpertInputs:
    """Modules that read or compute the input of a layer's experts; names are in the layer."""

    norm: str
    offset: float
    """Value that the norm adds to its weight."""
    sites: tuple[Site, ...]
    """Packed linear layers: those of each expert, and others that read the same tensor."""
    others: tuple[str, ...]
    """Matrices [O, I] that are not packed: routers and gates."""

    @property
    def linears(self) -> set[str]:
        """Names of the packed linear layers."""
        return {name for site in self.sites for name in site.linears}


@dataclass(slots=True)
class _Sample:
    """Tokens that a site reads."""

    parts: list[Tensor] = field(default_factory=list)
    taken: int = 0
    tokens: int = 0
    magnitude_I: Tensor | float = 0.0

    def add(self, x_NI: Tensor) -> None:
        """Count tokens, and keep some until the sample is full, evenly from this batch."""
        self.tokens += len(x_NI)
        self.magnitude_I = self.magnitude_I + x_NI.abs().sum(dim=0)
        count = min(_TOKENS - self.taken, len(x_NI), _TOKENS // 4)
        if count > 0:
            self.parts.append(x_NI[torch.arange(count) * len(x_NI) // count].clone())
            self.taken += count


@torch.no_grad()
def find_expert_inputs(
    layer: nn.Module, sites: Sequence[Site], run: RunBatch
) -> ExpertInputs | None:
    """Return what reads the input of a layer's experts; None if no scale of it folds.

    Args:
        layer: a layer whose experts are split.
        sites: of the layer.
        run: runs a batch; equal calls give equal results.
    """
    first = [site for site in sites if site.routing is not None and site.routing.stage == 0]
    if not first or any(site.source is not None for site in first):
        return None
    modules = {site.routing.module for site in first if site.routing is not None}
    if len(modules) > 1:
        return None
    [module] = modules
    inputs = get_linear(layer, first[0].linears[0]).in_features
    seen = _observe(layer, run, module)
    expected = seen.pop(module)[0]
    norms = [
        name
        for name, (_, output) in seen.items()
        if _is_norm(layer.get_submodule(name), inputs) and _is_same(output, expected)
    ]
    linears = {
        name
        for name, (value, _) in seen.items()
        if isinstance(layer.get_submodule(name), nn.Linear)
        and not name.startswith(f"{module}.")
        and _is_same(value, expected)
    }
    packed = [site for site in sites if site.routing is None and site.linears[0] in linears]
    in_sites = {name for site in packed for name in site.linears}
    parent = module.rpartition(".")[0]
    others = sorted(f"{name}.weight" for name in linears - in_sites)
    others += [
        name
        for name, value in layer.named_parameters()
        if name.startswith(f"{parent}.")
        and not name.startswith(f"{module}.")
        and value.ndim == 2
        and value.shape[1] == inputs
        and not isinstance(layer.get_submodule(name.rpartition(".")[0]), nn.Linear)
    ]
    for norm in norms[-1:]:
        for offset in (0.0, 1.0):
            found = ExpertInputs(norm, offset, (*first, *packed), tuple(others))
            if _is_unchanged(layer, found, run, inputs):
                return found
    return None


@torch.no_grad()
def scale_expert_inputs(
    layer: nn.Module,
    inputs: ExpertInputs,
    batches: Callable[[], Iterable[tuple[int, RunBatch]]],
    masks: Sequence[Tensor | None],
    grids: Mapping[str, WeightGrid],
    settings: QuantizationSettings,
) -> float:
    """Fold the best scale of the experts' input into a layer, in place.

    The candidates are s = x̄^r / w̄^(1−r), as for other sites (``scaling.py``), rounded to powers of
    two; the error of one is
    the sum of squares of what rounding to nearest changes in the results of all readers.

    Args:
        layer: the layer with its float weights.
        inputs: what reads the input.
        batches: yields the number of each batch, and what runs it through the layer.
        masks: valid positions of each batch, bool [B·T]; None where all are valid.
        grids: of each site by its name.
        settings: of the run.

    Returns:
        The exponent r; 0 if no scale helps.
    """
    samples = _samples(layer, inputs, batches, masks)
    reached = {name: sample for name, sample in samples.items() if sample.tokens}
    if not reached:
        return 0.0
    total = sum(sample.tokens for sample in reached.values())
    activation_I = torch.as_tensor(sum(s.magnitude_I for s in reached.values())) / total
    weights = {site.name: _probed(layer, site) for site in inputs.sites if site.name in reached}
    sizes = [relative_size(w, grids[name].width(len(w))) for name, w in weights.items()]
    size_I = torch.stack(sizes).mean(dim=0).clamp(min=_FLOOR)
    scales = [_scale(activation_I.clamp(min=_FLOOR), size_I, r) for r in _EXPONENTS]
    errors = torch.zeros(len(scales))
    for name, weight_IP in weights.items():
        sample, x_NI = reached[name], torch.cat(reached[name].parts)
        importance_I = x_NI.square().mean(dim=0).clamp(min=_FLOOR**2)
        for number, scale_I in enumerate(scales):
            scaled_IP = weight_IP * scale_I.unsqueeze(1)
            found = search_grids(
                scaled_IP,
                importance_I / scale_I.square(),
                grids[name],
                settings.scale_format,
                _RANGES,
            )
            change_IP = round_to_nearest(scaled_IP, found) / scale_I.unsqueeze(1) - weight_IP
            share = sample.tokens / len(x_NI)
            errors[number] += share * float((x_NI @ change_IP).square().sum())
    best = int(errors.argmin())
    if best:
        _fold(layer, inputs, scales[best], settings.float_dtype)
    return _EXPONENTS[best]


def _scale(activation_I: Tensor, size_I: Tensor, exponent: float) -> Tensor:
    if not exponent:
        return torch.ones_like(size_I)
    scale_I = activation_I**exponent / size_I ** (1 - exponent)
    scale_I /= (scale_I.max() * scale_I.min()).sqrt()
    return torch.exp2(scale_I.log2().round())


def _fold(layer: nn.Module, inputs: ExpertInputs, scale_I: Tensor, dtype: torch.dtype) -> None:
    """Divide the norm's output by a scale, and multiply the columns of all readers."""
    norm: Any = layer.get_submodule(inputs.norm)
    weight = (norm.weight + inputs.offset) / scale_I - inputs.offset
    norm.weight.data = weight.to(dtype).float()
    if getattr(norm, "bias", None) is not None:
        norm.bias.data = (norm.bias / scale_I).to(dtype).float()
    for value in _readers(layer, inputs):
        value.data = value.data * scale_I


def _readers(layer: nn.Module, inputs: ExpertInputs) -> Iterator[Tensor]:
    for site in inputs.sites:
        yield from (get_linear(layer, name).weight for name in site.linears)
    yield from (layer.get_parameter(name) for name in inputs.others)


def _probed(layer: nn.Module, site: Site) -> Tensor:
    """Return some outputs of each linear layer of a site, [I, P]."""
    parts = []
    for name in site.linears:
        weight_OI = get_linear(layer, name).weight
        count = min(_PROBES, len(weight_OI))
        parts.append(weight_OI[torch.arange(count) * len(weight_OI) // count])
    return torch.cat(parts).T.contiguous()


def _samples(
    layer: nn.Module,
    inputs: ExpertInputs,
    batches: Callable[[], Iterable[tuple[int, RunBatch]]],
    masks: Sequence[Tensor | None],
) -> dict[str, _Sample]:
    """Return tokens that each site reads, by its name."""
    samples = {site.name: _Sample() for site in inputs.sites}
    sites = {site.linears[0]: site for site in inputs.sites}
    for batch, run in batches():

        def record(name: str, arguments: tuple[Any, ...], batch: int = batch) -> None:
            site, x_NI = sites[name], flatten_positions(arguments[0])
            mask = masks[batch]
            if mask is not None:
                tokens = slice(None) if site.routing is None else routed_tokens(layer, site)
                x_NI = x_NI[mask[tokens]]
            samples[site.name].add(x_NI)

        with forward_hooks(layer, sites, before=record):
            run()
    return samples


def _observe(
    layer: nn.Module, run: RunBatch, module: str
) -> dict[str, tuple[Tensor | None, Tensor | None]]:
    """Return the first input and output of the experts' module, of norms and linear layers."""
    seen: dict[str, tuple[Tensor | None, Tensor | None]] = {}

    def after(name: str, arguments: tuple[Any, ...], result: Any) -> None:
        values = [next(iter(float_tensors(v)), None) for v in (arguments, result)]
        seen.setdefault(name, (values[0], values[1]))

    names = [
        name
        for name, part in layer.named_modules()
        if name == module or (name and not list(part.children()))
    ]
    with forward_hooks(layer, dict.fromkeys(names, ""), after=after):
        run()
    return seen


def _is_norm(module: nn.Module, width: int) -> bool:
    weight = getattr(module, "weight", None)
    return isinstance(weight, nn.Parameter) and weight.shape == (width,)


def _is_same(value: Tensor | None, expected: Tensor | None) -> bool:
    if value is None or expected is None or value.numel() != expected.numel():
        return False
    return bool(torch.equal(value.reshape(expected.shape), expected))


def _is_unchanged(layer: nn.Module, inputs: ExpertInputs, run: RunBatch, width: int) -> bool:
    """Return True if folding a random scale changes no output, whatever experts tokens reach."""
    generator = torch.Generator().manual_seed(0)
    scale_I = torch.rand(width, generator=generator) * 1.5 + 0.5
    expected = _outputs(layer, run)
    with _restored(layer, inputs):
        norm: Any = layer.get_submodule(inputs.norm)
        norm.weight.data = (norm.weight + inputs.offset) / scale_I - inputs.offset
        if getattr(norm, "bias", None) is not None:
            norm.bias.data = norm.bias / scale_I
        half_way = _change(_outputs(layer, run), expected)
    with _restored(layer, inputs):
        _fold(layer, inputs, scale_I, torch.float32)
        change = _change(_outputs(layer, run), expected)
    return half_way > 0 and change <= _RESTORED * half_way


def _outputs(layer: nn.Module, run: RunBatch) -> list[Tensor]:
    """Return the results of a run with the router's choice, and of one through all experts."""
    results = [value.clone() for value in float_tensors(run())]
    with every_token_reaches(layer):
        return results + [value.clone() for value in float_tensors(run())]


def _change(results: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    changes = [
        float((a - b).abs().max() / b.abs().max().clamp(min=1e-30))
        for a, b in zip(results, expected, strict=True)
        if b.numel()
    ]
    return max(changes, default=0.0)


@contextmanager
def _restored(layer: nn.Module, inputs: ExpertInputs) -> Iterator[None]:
    """Restore the parameters that folding changes."""
    norm = layer.get_submodule(inputs.norm)
    parameters = [*norm.parameters(recurse=False), *_readers(layer, inputs)]
    stored = [parameter.data for parameter in parameters]
    for parameter in parameters:
        parameter.data = parameter.data.clone()
    try:
        yield
    finally:
        for parameter, value in zip(parameters, stored, strict=True):
            parameter.data = value
