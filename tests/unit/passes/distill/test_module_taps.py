"""Features of ``distill`` from any module: paths, widths, and gradients through the outputs."""

import pytest
import torch
from torch import nn

from compressor.errors import RequirementError
from compressor.models.architecture import Architecture
from compressor.models.families.image_classifier.family import ImageClassifier
from passes.distill.losses import Matching
from passes.distill.module_taps import pair_modules, path_problems, record_outputs

FAMILY = ImageClassifier()


class Net(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.rnn = nn.GRU(width, width, batch_first=True)
        self.unused = nn.Linear(2, 2)

    def forward(self, image):
        states = self.stem(image)
        return {"logits": self.rnn(states.flatten(2).transpose(1, 2))[0].mean(1)}


def record(student, teacher, modules, image):
    with (
        record_outputs(student, tuple(modules)) as first,
        record_outputs(teacher, tuple(modules.values())) as second,
    ):
        return student(image), teacher(image), first, second


def test_outputs_of_modules_of_other_widths_are_matched():
    torch.manual_seed(0)
    student, teacher = Net(4), Net(6)
    modules = {"stem": "stem", "rnn": "rnn"}
    out, target, first, second = record(student, teacher, modules, torch.randn(2, 3, 5, 5))
    matching = Matching.create((), modules, (out, target), (first, second))
    matching.distance(out, target).backward()
    assert [pair.width_axis for pair in matching.pairs] == [1, 2]
    assert student.stem.weight.grad.abs().sum() > 0 and student.rnn.weight_hh_l0.grad is not None
    assert not student.stem._forward_hooks and not student._forward_pre_hooks


def test_modules_that_do_not_fit_are_named_at_once():
    student, teacher = Net(4), Net(6)
    modules = {"unused": "stem", "stem": "rnn"}
    _, _, first, second = record(student, teacher, modules, torch.randn(2, 3, 5, 5))
    with pytest.raises(
        RequirementError, match=r"'unused' of the student.*'stem' returns"
    ) as caught:
        pair_modules(modules, first, second)
    assert "one dimension, the width" in caught.value.remedy


def test_unknown_paths_are_listed_with_near_names():
    small = Architecture(FAMILY, FAMILY.presets["tiny"])
    from passes.distill.module_taps import module_names

    name = next(name for name in module_names(small) if "." in name)
    problems = path_problems({name + "x": "nothing.like.it", name: name}, small, small)
    assert [problem.reason for problem in problems] == [
        f"the student has no module {name + 'x'!r}",
        "the teacher has no module 'nothing.like.it'",
    ]
    assert name in problems[0].remedy
