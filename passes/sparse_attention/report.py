"""Summary of a run for the manifest: memory, gates, compared patterns and a map of heads."""

from __future__ import annotations

from typing import Any

import numpy as np

from compressor.models.attention_patterns.record import AttentionPattern
from compressor.models.capabilities.attention_heads import AttentionHeads
from passes.sparse_attention.config import SparseAttentionConfig
from passes.sparse_attention.verification import Measured

_VALUE_BYTES = 2
"""Bytes of a key or value in float16."""
_FULL, _LOCAL, _WINDOWED = "●", "○", "·"


class Report:
    """What a run found."""

    def __init__(
        self,
        config: SparseAttentionConfig,
        heads: AttentionHeads,
        pattern: AttentionPattern,
        measured: Measured,
        ranges: tuple[range, ...],
    ) -> None:
        """Start with the chosen pattern and what it costs."""
        self.pattern = pattern
        self.losses_LWG: np.ndarray[Any, Any] = np.empty((0, 0, 0))
        self._config, self._heads, self._ranges = config, heads, ranges
        self._measured = measured
        self._rows: list[dict[str, Any]] = []
        self.add("chosen", measured, pattern)

    def add(self, name: str, measured: Measured, pattern: AttentionPattern | None) -> None:
        """Add a pattern to the comparison; None for one that needs all keys, or saves no memory."""
        share = 1.0 if pattern is None else self._share(pattern)
        kls = {
            f"kl {span.start}–{span.stop - 1}": round(kl, 5)
            for span, kl in zip(self._ranges, measured.kl_by_range, strict=True)
        }
        self._rows.append(
            {
                "pattern": name,
                "kv_memory": round(share, 4),
                **kls,
                "same_top1": round(measured.same_top1, 4),
                "loss": round(measured.loss, 5),
                "copy_loss": round(measured.copy_loss, 5),
            }
        )

    def summary(self) -> dict[str, Any]:
        """Return JSON values for the manifest."""
        config, heads = self._config, self._heads
        row_bytes = 2 * heads.head_width * _VALUE_BYTES
        before = row_bytes * heads.cached_rows(config.context_length)
        gates = (
            ("kl", self._measured.kl, config.kl_limit),
            ("copy_loss", self._measured.copy_loss, config.max_copy_loss),
        )
        return {
            "solver": "exact: multiple-choice knapsack by dynamic programming",
            "context_length": config.context_length,
            "local_heads": self.pattern.local_heads,
            "key_value_heads": heads.layers * heads.key_heads,
            "kv_memory": round(self._share(self.pattern), 4),
            "kv_bytes_before": before,
            "kv_bytes_after": round(before * self._share(self.pattern)),
            "bytes_of_a_value": _VALUE_BYTES,
            "gates": [
                {"gate": name, "value": round(value, 5), "limit": limit}
                for name, value, limit in gates
            ],
            "patterns": self._rows,
            "map": [self._map_row(number) for number in range(heads.layers)],
            "losses": self._loss_rows(),
        }

    def _share(self, pattern: AttentionPattern) -> float:
        tokens = self._config.context_length
        return pattern.cached_rows(self._heads, tokens) / self._heads.cached_rows(tokens)

    def _map_row(self, number: int) -> dict[str, Any]:
        layer, heads = self.pattern.layers[number], self._heads
        if number in heads.windowed:
            return {
                "layer": number,
                "heads": _WINDOWED * heads.key_heads,
                "local": f"all {heads.windowed[number]}, the model's own",
            }
        local = set() if layer is None else {*layer.heads}
        marks = (_LOCAL if head in local else _FULL for head in range(heads.key_heads))
        kept = "" if layer is None else f"{layer.sinks} + {layer.window}"
        return {"layer": number, "heads": "".join(marks), "local": kept}

    def _loss_rows(self) -> list[dict[str, Any]]:
        return [
            {
                "layer": number,
                "window": window,
                **{f"head {head}": float(f"{loss:.3e}") for head, loss in enumerate(losses_G)},
            }
            for number in self._heads.full_layers
            for window, losses_G in zip(self._config.windows, self.losses_LWG[number], strict=True)
        ]
