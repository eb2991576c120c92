"""The solver of `sparse-attention` finds the assignment that an exhaustive search finds."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from passes.sparse_attention.assignment import (
    Assignments,
    layer_options,
    most_saved_rows,
    pattern_of,
    random_pattern,
)

TOKENS, SINKS, WINDOWS = 64, 2, (8, 24)


def _every_choice(losses_WG: np.ndarray) -> list[tuple[int, float]]:
    """Return saved rows and loss of every set of local heads under every window."""
    _, heads = losses_WG.shape
    choices = []
    for window, losses in zip(WINDOWS, losses_WG, strict=True):
        for local in product((0, 1), repeat=heads):
            saved = sum(local) * (TOKENS - SINKS - window)
            choices.append((saved, float(np.dot(local, losses))))
    return choices


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    layers=st.integers(1, 3),
    heads=st.integers(1, 3),
    share=st.floats(0, 1),
)
def test_no_set_of_heads_and_windows_that_saves_as_much_loses_less(
    seed: int, layers: int, heads: int, share: float
) -> None:
    losses = np.random.default_rng(seed).random((layers, len(WINDOWS), heads)) ** 3
    options = [layer_options(losses_WG, WINDOWS, SINKS, TOKENS) for losses_WG in losses]
    target = int(share * most_saved_rows(options))
    chosen = Assignments(options).best(target)
    assert sum(option.saved_rows for option in chosen) >= target
    least = min(
        sum(loss for _, loss in choice)
        for choice in product(*map(_every_choice, losses))
        if sum(saved for saved, _ in choice) >= target
    )
    assert sum(option.loss for option in chosen) == pytest.approx(least, abs=1e-12)


def test_layers_without_a_choice_stay_full_and_too_much_is_an_error() -> None:
    options = [layer_options(np.ones((2, 2)), WINDOWS, SINKS, TOKENS) for _ in range(3)]
    options[1] = options[1][:1]
    assignments = Assignments(options)
    pattern = pattern_of(assignments.best(most_saved_rows(options)))
    assert [layer is None for layer in pattern.layers] == [False, True, False]
    assert pattern_of(assignments.best(0)).local_heads == 0
    with pytest.raises(ValueError, match="at most"):
        assignments.best(most_saved_rows(options) + 1)


def test_the_random_control_saves_as_much_with_other_heads() -> None:
    losses = np.random.default_rng(0).random((12, 2, 4))
    options = [layer_options(losses_WG, WINDOWS, SINKS, TOKENS) for losses_WG in losses]
    full = [number for number in range(12) if number != 3]
    options[3] = options[3][:1]
    chosen = pattern_of(Assignments(options).best(most_saved_rows(options) // 2))
    control = random_pattern(chosen, full, 4, seed=0)
    assert control.layers[3] is None
    assert control != chosen

    def saved(layers: tuple) -> int:
        return sum(len(layer.heads) * (TOKENS - layer.kept) for layer in layers if layer)

    assert saved(control.layers) == saved(chosen.layers)
