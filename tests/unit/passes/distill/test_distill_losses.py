"""Temperature schedules and the matching of features."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from compressor.errors import RequirementError
from passes.distill.losses import FeatureMatcher, create_matcher, temperature_at


@given(
    fraction=st.floats(0, 1),
    start=st.floats(0.5, 10),
    end=st.floats(0.5, 10),
    schedule=st.sampled_from(["linear", "cosine", "steps"]),
)
def test_the_temperature_stays_between_its_ends(
    fraction: float, start: float, end: float, schedule
) -> None:
    temperature = temperature_at(fraction, start, end, schedule, 5)
    assert min(start, end) - 1e-9 <= temperature <= max(start, end) + 1e-9


@pytest.mark.parametrize("schedule", ["linear", "cosine", "steps"])
def test_the_temperature_falls_from_start_to_end(schedule) -> None:
    assert temperature_at(0, 5, 1, schedule, 5) == pytest.approx(5)
    assert temperature_at(1, 5, 1, schedule, 5) == pytest.approx(1)
    values = [temperature_at(step / 100, 5, 1, schedule, 5) for step in range(101)]
    assert values == sorted(values, reverse=True)
    assert len({round(value, 6) for value in values}) == (5 if schedule == "steps" else 101)


def test_features_of_different_widths_are_matched_through_a_projection() -> None:
    matcher = FeatureMatcher({"cells": (4, 6)})
    student, teacher = torch.randn(2, 9, 4), torch.randn(2, 9, 6)
    assert 0 <= matcher({"cells": student}, {"cells": teacher}).item() <= 2
    same = matcher.projections["cells"](student).detach()
    assert matcher({"cells": student}, {"cells": 3 * same}).item() == pytest.approx(0, abs=1e-6)


def test_vectors_that_are_zero_in_the_teacher_do_not_count() -> None:
    matcher = FeatureMatcher({"command": (4, 4)})
    student, teacher = torch.randn(2, 5, 4), torch.randn(2, 5, 4)
    teacher[:, 3:] = 0
    expected = matcher({"command": student[:, :3]}, {"command": teacher[:, :3]})
    torch.testing.assert_close(matcher({"command": student}, {"command": teacher}), expected)


def test_features_with_another_number_of_vectors_are_an_error() -> None:
    student, teacher = {"cells": torch.randn(2, 9, 4)}, {"cells": torch.randn(2, 8, 4)}
    with pytest.raises(RequirementError, match=r"'cells' is \[2, 9, 4\] in the student and \[2, 8"):
        create_matcher(("cells",), student, teacher)
