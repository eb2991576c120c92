"""The cheapest assignment of local heads within a memory budget, by dynamic programming.

The problem is a multiple-choice knapsack: each layer takes one option, of which the rows of the
cache that it saves and its loss are known; the total loss is the sum. Within a layer, the best
option of a window and a number of heads takes the heads with the smallest losses, so no other
options are needed, and the result is exact for losses that add up.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from compressor.models.attention_patterns.record import AttentionPattern, LocalHeads

Losses = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True, slots=True)
class Option:
    """One choice for a layer."""

    pattern: LocalHeads | None
    """None for full attention."""
    saved_rows: int
    """Keys that the layer's heads need not hold."""
    loss: float


def layer_options(
    losses_WG: Losses, windows: Sequence[int], sinks: int, tokens: int
) -> list[Option]:
    """Return the options of a layer: for each window and number of heads, those that lose least.

    Args:
        losses_WG: loss of each head under each window; W windows, G key-value heads.
        windows: sizes of the windows.
        sinks: first tokens that local heads see.
        tokens: length of the sequences.
    """
    options = [Option(None, 0, 0.0)]
    for window, losses_G in zip(windows, losses_WG, strict=True):
        saved = tokens - sinks - window
        order = np.argsort(losses_G, kind="stable")
        for count in range(1, len(order) + 1):
            heads = tuple(sorted(order[:count].tolist()))
            pattern = LocalHeads(heads=heads, sinks=sinks, window=window)
            options.append(Option(pattern, count * saved, float(losses_G[order[:count]].sum())))
    return options


def most_saved_rows(layers: Sequence[Sequence[Option]]) -> int:
    """Return the rows that are saved if every layer takes the option that saves most."""
    return sum(max(option.saved_rows for option in options) for options in layers)


class Assignments:
    """The best assignments for all targets up to the most rows that can be saved."""

    def __init__(self, layers: Sequence[Sequence[Option]]) -> None:
        """Fill the table of the dynamic programme.

        ``best[s]`` is the smallest loss of the layers so far that save at least s units, of which
        the greatest common divisor of all savings is one.

        Args:
            layers: options of each layer; the first of each saves nothing.
        """
        self._layers = layers
        saved = [option.saved_rows for options in layers for option in options]
        self._unit = math.gcd(*saved) or 1
        self._units = most_saved_rows(layers) // self._unit
        states = np.arange(self._units + 1)
        best = np.where(states == 0, 0.0, np.inf)
        self._choices = []
        for options in layers:
            layer_best = np.full_like(best, np.inf)
            choice = np.zeros(len(best), dtype=np.int16)
            for number, option in enumerate(options):
                rest = np.maximum(states - option.saved_rows // self._unit, 0)
                losses = best[rest] + option.loss
                is_better = losses < layer_best
                layer_best[is_better] = losses[is_better]
                choice[is_better] = number
            best = layer_best
            self._choices.append(choice)

    def best(self, saved_rows: int) -> tuple[Option, ...]:
        """Return the options with the smallest loss that together save at least some rows.

        Raises:
            ValueError: no assignment saves so many.
        """
        units = -(-saved_rows // self._unit)
        if units > self._units:
            raise ValueError(f"at most {self._units * self._unit} rows can be saved")
        chosen = []
        for options, choices in zip(reversed(self._layers), reversed(self._choices), strict=True):
            option = options[int(choices[units])]
            chosen.append(option)
            units = max(0, units - option.saved_rows // self._unit)
        return tuple(reversed(chosen))


def pattern_of(options: Sequence[Option]) -> AttentionPattern:
    """Return the pattern that the options of all layers form."""
    return AttentionPattern(layers=tuple(option.pattern for option in options))


def random_pattern(
    pattern: AttentionPattern, full_layers: Sequence[int], key_heads: int, seed: int
) -> AttentionPattern:
    """Return a pattern that saves as much with heads drawn at random: the control.

    The entries of the layers are permuted, and within a layer as many heads are drawn.

    Args:
        pattern: the chosen pattern.
        full_layers: layers that a pattern may change.
        key_heads: key-value heads of a layer.
        seed: seed of the draw.
    """
    generator = np.random.default_rng(seed)
    layers: list[LocalHeads | None] = [None] * len(pattern.layers)
    for number, source in zip(full_layers, generator.permutation(full_layers), strict=True):
        layer = pattern.layers[int(source)]
        if layer is not None:
            drawn = generator.choice(key_heads, size=len(layer.heads), replace=False)
            heads = tuple(sorted(drawn.tolist()))
            layers[number] = layer.model_copy(update={"heads": heads})
    return AttentionPattern(layers=tuple(layers))
