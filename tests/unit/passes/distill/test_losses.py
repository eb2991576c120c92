from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import cross_entropy, kl_div, log_softmax, softmax

from passes.common.losses import soft_cross_entropy
from passes.distill.losses import FeatureMatcher, temperature_at


@given(
    fraction=st.floats(0, 1),
    start=st.floats(0.5, 10),
    end=st.floats(0.5, 10),
    schedule=st.sampled_from(["linear", "cosine", "steps"]),
)
def test_the_temperature_stays_between_its_ends(
    fraction: float, start: float, end: float, schedule
) -> None:
    at = temperature_at(fraction, start, end, schedule, 5)
    assert min(start, end) - 1e-9 <= at <= max(start, end) + 1e-9


@pytest.mark.parametrize("schedule", ["linear", "cosine", "steps"])
def test_the_temperature_begins_and_ends_where_it_should(schedule) -> None:
    assert temperature_at(0, 5, 1, schedule, 5) == pytest.approx(5)
    assert temperature_at(1, 5, 1, schedule, 5) == pytest.approx(1)
    values = [temperature_at(step / 100, 5, 1, schedule, 5) for step in range(101)]
    assert values == sorted(values, reverse=True)
    assert len({round(value, 6) for value in values}) == (5 if schedule == "steps" else 101)


def test_soft_cross_entropy_at_one_is_cross_entropy_with_the_teachers_answers() -> None:
    torch.manual_seed(0)
    student, teacher = torch.randn(8, 10), torch.randn(8, 10)
    assert soft_cross_entropy(student, teacher, 1.0) == pytest.approx(
        cross_entropy(student, softmax(teacher, -1)).item()
    )


def test_its_gradient_is_that_of_the_divergence_and_its_scale_does_not_fall_with_temperature() -> (
    None
):
    torch.manual_seed(0)
    teacher = torch.randn(8, 10)
    gradients = {}
    for temperature in (1.0, 4.0):
        student = torch.randn(8, 10, generator=torch.Generator().manual_seed(1)).requires_grad_()
        soft_cross_entropy(student, teacher, temperature).backward()
        ours = student.grad.clone()
        student.grad = None
        divergence = kl_div(
            log_softmax(student / temperature, -1),
            softmax(teacher / temperature, -1),
            reduction="batchmean",
        )
        (temperature**2 * divergence).backward()
        torch.testing.assert_close(ours, student.grad)
        gradients[temperature] = ours.norm().item()
    assert 0.3 < gradients[4.0] / gradients[1.0] < 3


def test_features_match_through_a_projection_of_any_width() -> None:
    matcher = FeatureMatcher({"cells": (4, 6)})
    student, teacher = torch.randn(2, 9, 4), torch.randn(2, 9, 6)
    assert 0 <= matcher({"cells": student}, {"cells": teacher}).item() <= 2
    same = matcher.projections["cells"](student).detach()
    assert matcher({"cells": student}, {"cells": 3 * same}).item() == pytest.approx(0, abs=1e-6)


def test_vectors_that_the_teacher_has_not_do_not_count() -> None:
    matcher = FeatureMatcher({"command": (4, 4)})
    student, teacher = torch.randn(2, 5, 4), torch.randn(2, 5, 4)
    teacher[:, 3:] = 0
    expected = matcher({"command": student[:, :3]}, {"command": teacher[:, :3]})
    torch.testing.assert_close(matcher({"command": student}, {"command": teacher}), expected)
