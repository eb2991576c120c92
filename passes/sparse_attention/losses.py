"""The loss of each key-value head under each window, measured on texts.

The last tokens of a text may repeat a passage of its start. Heads that copy matter there and hardly
anywhere else, so both parts of a text have the same weight.

One forward pass with full attention per text; each layer is measured as it is called, with the
queries, keys and values that it has in memory, so memory follows one layer.

Shapes: P parts of a text (its own tokens, the repetition), L layers, W windows, G key-value heads,
B batch, Q queries, K keys, D values of a head, N residual stream.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn

from compressor.errors import NumericalError
from compressor.models.attention_patterns.attention import (
    AttentionCall,
    Observer,
    local_attention,
    observe_attention,
    positions,
)
from compressor.models.capabilities.attention_heads import AttentionHeads

_PARTS = 2
_ROWS = 256
"""Queries that are compared at once."""


@dataclass(frozen=True, slots=True)
class Sums:
    """Sums of squares over the texts so far, in float64."""

    errors_PLWG: Tensor
    """Of what the output of a layer's ``o_proj`` loses if a head is local."""
    streams_PL: Tensor
    """Of the residual stream that the layer adds to, over the same rows."""

    @classmethod
    def zero(cls, layers: int, windows: int, key_heads: int) -> Sums:
        """Return sums over no texts."""
        shape = (_PARTS, layers, windows, key_heads)
        return cls(
            torch.zeros(shape, dtype=torch.float64),
            torch.zeros(shape[:2], dtype=torch.float64),
        )

    def relative(self) -> Tensor:
        """Return the squared errors relative to the residual stream, [L, W, G].

        It is the mean of the parts that the texts have.

        Raises:
            NumericalError: a sum is not finite.
        """
        parts = self.errors_PLWG / self.streams_PL.clamp(min=1e-300)[..., None, None]
        counts = (self.streams_PL > 0).any(1).sum().clamp(min=1)
        relative = parts.sum(0) / counts
        if not bool(relative.isfinite().all()):
            raise NumericalError("NaN or infinity in the attention of the calibration texts")
        return relative


class HeadMeasurement:
    """Measures the layers of a model while it runs; a context manager that installs the hooks."""

    def __init__(
        self, module: nn.Module, heads: AttentionHeads, sinks: int, windows: tuple[int, ...]
    ) -> None:
        self._module, self._heads, self._sinks, self._windows = module, heads, sinks, windows
        self._residual_BQN: Tensor | None = None
        self._handles: list[Any] = []
        self.repeated = 0
        """Tokens at the end of the present text that repeat a passage, and are scored."""
        self.sums = Sums.zero(heads.layers, len(windows), heads.key_heads)

    def __enter__(self) -> Self:
        for number in self._heads.full_layers:
            layer = self._module.get_submodule(f"{self._heads.layers_name}.{number}")
            handle = layer.register_forward_pre_hook(self._keep_residual, with_kwargs=True)
            self._handles.append(handle)
            observe_attention(self._attention(number), self._observer(number))
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()
        for number in self._heads.full_layers:
            observe_attention(self._attention(number), None)
        self._residual_BQN = None

    def _attention(self, number: int) -> Any:
        return self._module.get_submodule(self._heads.names[number])

    def _keep_residual(
        self, _: nn.Module, arguments: tuple[Any, ...], options: Mapping[str, Any]
    ) -> None:
        self._residual_BQN = arguments[0] if arguments else options["hidden_states"]

    def _observer(self, number: int) -> Observer:
        attention = self._attention(number)
        norm: nn.Module | None = None
        if self._heads.output_norm is not None:
            path = f"{self._heads.layers_name}.{number}.{self._heads.output_norm}"
            norm = self._module.get_submodule(path)
        projection = _Projection(attention.o_proj, norm, self._heads)

        def observe(call: AttentionCall, output_BQHD: Tensor) -> None:
            if self._residual_BQN is not None:
                self._measure(number, call, output_BQHD, projection, self._residual_BQN)

        return observe

    def _measure(
        self,
        number: int,
        call: AttentionCall,
        output_BQHD: Tensor,
        projection: _Projection,
        residual_BQN: Tensor,
    ) -> None:
        first = self._sinks + self._windows[0]
        queries, keys = call.query_BHQD.shape[2], call.key_BGKD.shape[2]
        queries_BQ, _ = positions(queries, keys, call.mask, call.query_BHQD.device)
        for start in range(0, queries, _ROWS):
            rows = slice(start, min(start + _ROWS, queries))
            counts_BQ = queries_BQ[:, rows] >= first
            if call.mask is not None:
                counts_BQ = counts_BQ & call.mask[:, 0, rows].diagonal(start, 1, 2)
            if not bool(counts_BQ.any()):
                continue
            stream_BQ = residual_BQN[:, rows].double().square().sum(-1)
            own = max(0, queries - self.repeated - start)
            self.sums.streams_PL[:, number] += _by_part(stream_BQ.masked_fill(~counts_BQ, 0), own)
            for index, window in enumerate(self._windows):
                local = local_attention(call, rows, self._sinks, window)
                errors_BQG = projection.errors(output_BQHD[:, rows], local)
                counted = errors_BQG.masked_fill(~counts_BQ[..., None], 0)
                self.sums.errors_PLWG[:, number, index] += _by_part(counted, own)


def _by_part(values_BQ: Tensor, own: int) -> Tensor:
    """Return the sums over a text's own rows, which are the first, and over the others, on the CPU.

    Further axes are kept.
    """
    parts = (values_BQ[:, :own], values_BQ[:, own:])
    return torch.stack([part.sum((0, 1)) for part in parts]).cpu()


class _Projection:
    """What a change of single heads changes in the residual stream."""

    def __init__(self, o_proj: nn.Linear, norm: nn.Module | None, heads: AttentionHeads) -> None:
        self._o_proj, self._norm = o_proj, norm
        self._groups, self._width = heads.key_heads, heads.heads_per_key * heads.head_width

    def errors(self, full_BQHD: Tensor, local_BQHD: Tensor) -> Tensor:
        """Return the squared error of each group of heads, float64 [B, Q, G]."""
        change_BQX = (full_BQHD - local_BQHD).float().flatten(2)
        full_BQN = self._o_proj(full_BQHD.flatten(2)).float()
        errors = []
        for group in range(self._groups):
            columns = slice(group * self._width, (group + 1) * self._width)
            part_BQN = change_BQX[..., columns] @ self._o_proj.weight[:, columns].float().T
            if self._norm is not None:
                part_BQN = self._norm(full_BQN) - self._norm(full_BQN - part_BQN)
            errors.append(part_BQN.square().sum(-1).double())
        return torch.stack(errors, dim=-1)


def measure_texts(
    measurement: HeadMeasurement, module: Any, texts: Iterator[tuple[Mapping[str, Tensor], int]]
) -> Iterator[Sums]:
    """Run texts through a model one at a time, and yield the sums after each.

    Args:
        measurement: of the model.
        module: the model.
        texts: inputs of each text, and the number of scored tokens at its end that repeat a
            passage.
    """
    with measurement, torch.inference_mode():
        for inputs, repeated in texts:
            measurement.repeated = repeated
            module.base_model(**inputs, use_cache=False)
            yield measurement.sums
