"""Soft cross-entropy, and the heads that student and teacher share."""

import pytest
import torch
from torch.nn.functional import cross_entropy, kl_div, log_softmax, softmax

from compressor.errors import DataError, RequirementError
from passes.common.losses import (
    distillation_losses,
    hard_cross_entropy,
    shared_heads,
    soft_cross_entropy,
)


def test_soft_cross_entropy_at_temperature_one_is_cross_entropy_with_probabilities() -> None:
    torch.manual_seed(0)
    student, teacher = torch.randn(8, 10), torch.randn(8, 10)
    assert soft_cross_entropy(student, teacher, 1.0) == pytest.approx(
        cross_entropy(student, softmax(teacher, -1)).item()
    )


def test_its_gradient_is_that_of_the_kl_divergence_at_every_temperature() -> None:
    torch.manual_seed(0)
    teacher = torch.randn(8, 10)
    norms = {}
    for temperature in (1.0, 4.0):
        student = torch.randn(8, 10, generator=torch.Generator().manual_seed(1)).requires_grad_()
        soft_cross_entropy(student, teacher, temperature).backward()
        gradient = student.grad.clone()
        student.grad = None
        divergence = kl_div(
            log_softmax(student / temperature, -1),
            softmax(teacher / temperature, -1),
            reduction="batchmean",
        )
        (temperature**2 * divergence).backward()
        torch.testing.assert_close(gradient, student.grad)
        norms[temperature] = gradient.norm().item()
    assert 0.3 < norms[4.0] / norms[1.0] < 3


@pytest.mark.parametrize(
    ("weight", "names"),
    [(0.0, {"label"}), (0.5, {"label", "soft_label"}), (1.0, {"soft_label"})],
)
def test_terms_of_weight_zero_are_left_out(weight: float, names: set[str]) -> None:
    logits = torch.randn(2, 3)
    losses = distillation_losses(
        {"label": logits},
        {"label": torch.tensor([0, 2])},
        {"label": logits},
        weight=weight,
        temperature=2.0,
    )
    assert set(losses) == names


def test_a_label_beyond_the_classes_is_an_error() -> None:
    with pytest.raises(DataError, match="label 3 in the data, but the model has 3 classes"):
        hard_cross_entropy({"label": torch.randn(2, 3)}, {"label": torch.tensor([0, 3])})


def test_heads_of_other_shapes_get_no_soft_labels() -> None:
    notes: list[str] = []
    student = {"label": torch.randn(2, 3), "action": torch.randn(2, 4), "target": torch.randn(2, 5)}
    teacher = {"label": torch.randn(2, 3), "action": torch.randn(2, 6)}
    assert shared_heads(student, teacher, notes.append) == ("label",)
    assert notes == ["no soft labels for action, target: the teacher's have another shape"]


def test_another_number_of_classes_is_an_error() -> None:
    with pytest.raises(RequirementError, match="the student has 3 classes and the teacher 4"):
        shared_heads({"label": torch.randn(2, 3)}, {"label": torch.randn(2, 4)}, lambda _: None)


def test_a_score_is_trained_by_its_squared_error() -> None:
    logits = torch.tensor([[1.0], [3.0]])
    batch = {"label": torch.tensor([0.0, 1.0])}
    assert hard_cross_entropy({"label": logits}, batch)["label"].item() == pytest.approx(2.5)
    soft = soft_cross_entropy(logits, torch.tensor([[1.0], [1.0]]), 2.0)
    assert soft.item() == pytest.approx(2.0)


@pytest.mark.parametrize(
    ("classes", "label", "message"),
    [
        (1, torch.tensor([0, 1]), "has numbers of classes as label, and the model expects scores"),
        (3, torch.tensor([0.5, 1.0]), "has scores as label, and the model expects numbers"),
        (3, torch.tensor([[0, 1], [1, 0]]), r"logits \[2, 3\] and label \[2, 2\] do not fit"),
    ],
)
def test_labels_of_another_kind_are_errors(classes: int, label: torch.Tensor, message: str) -> None:
    with pytest.raises(DataError, match=message):
        hard_cross_entropy({"label": torch.zeros(2, classes)}, {"label": label})


def test_positions_without_a_label_do_not_count_and_images_have_classes_first() -> None:
    logits = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(0))
    label = torch.tensor([[0, 1, -100, 2, -100], [1, -100, -100, -100, -100]])
    loss = hard_cross_entropy({"label": logits}, {"label": label})["label"]
    counted = label != -100
    expected = torch.nn.functional.cross_entropy(logits[counted], label[counted])
    assert torch.allclose(loss, expected)
    image = logits.movedim(-1, 1)[:, :, None, :]
    same = hard_cross_entropy({"label": image}, {"label": label[:, None]})["label"]
    assert torch.allclose(same, expected)
