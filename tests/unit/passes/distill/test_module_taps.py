"""Features of ``distill`` from any module: paths, widths, and gradients through the outputs."""

import pytest
import torch
from torch import nn

from compressor.errors import RequirementError
from compressor.models.architecture import Architecture
from compressor.models.checkpoint.description import read_description
from compressor.models.families.image_classifier.family import ImageClassifier
from passes.distill.losses import Matching
from passes.distill.module_shapes import shape_problems
from passes.distill.module_taps import (
    ModuleOutputs,
    pair_modules,
    path_problems,
    record_outputs,
)
from tests.support.encoder_classes import CLASSES

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
    assert [pair.width_axes for pair in matching.pairs] == [(1, 1), (2, 2)]
    assert student.stem.weight.grad.abs().sum() > 0 and student.rnn.weight_hh_l0.grad is not None
    assert not student.stem._forward_hooks and not student._forward_pre_hooks


def test_modules_that_do_not_fit_are_named_at_once():
    student, teacher = Net(4), Net(6)
    modules = {"unused": "stem", "stem": "rnn"}  # maps of 5 x 6 have no clear channels
    _, _, first, second = record(student, teacher, modules, torch.randn(2, 3, 5, 6))
    with pytest.raises(
        RequirementError, match=r"'unused' of the student.*'stem' returns"
    ) as caught:
        pair_modules(modules, first, second)
    assert "[batch, width, height, width]" in caught.value.remedy


MAP, SMALL, LAST = torch.randn(2, 3, 8, 8), torch.randn(2, 6, 4, 4), torch.randn(2, 4, 4, 6)
TOKENS, VECTOR = torch.randn(2, 17, 6), torch.randn(2, 6)


@pytest.mark.parametrize(
    ("student", "teacher", "vectors"),
    [
        (MAP, SMALL, (2, 4, 4)),
        (MAP, LAST, (2, 4, 4)),
        (MAP, TOKENS, (2,)),
        (TOKENS, SMALL, (2,)),
        (VECTOR, MAP, (2,)),
    ],
    ids=["maps", "channels last", "map and tokens", "tokens and map", "vector and map"],
)
def test_outputs_at_other_positions_are_averaged(student, teacher, vectors):
    first, second = ModuleOutputs({"a": student}), ModuleOutputs({"b": teacher})
    [pair] = pair_modules({"a": "b"}, first, second)
    ours, theirs = pair.features(first, of_student=True), pair.features(second, of_student=False)
    assert ours.shape[:-1] == theirs.shape[:-1] == vectors
    widths = (3 if student is MAP else 6, 3 if teacher is MAP else 6)
    assert (ours.shape[-1], theirs.shape[-1]) == widths
    first_mean = student.mean((2, 3)) if student is MAP else ours.reshape(2, -1, 6).mean(1)
    assert torch.allclose(ours.reshape(2, -1, widths[0]).mean(1), first_mean, atol=1e-6)


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


def test_shapes_that_do_not_fit_are_found_without_data(tmp_path):
    CLASSES["swin"].build().save_pretrained(tmp_path)
    model = read_description(tmp_path)
    blocks = "swin.encoder.layers.{}.blocks.0"
    modules = {
        "swin.embeddings.norm": blocks.format(1),  # other positions and another width
        "swin.layernorm": blocks.format(0) + ".attention.q_proj",  # [batch · windows, …]
        blocks.format(0): blocks.format(0) + ".attention.relative_position_bias",
    }
    problems = shape_problems(modules, model, model)
    assert [problem.reason.partition(" returns")[0] for problem in problems] == [
        "'swin.layernorm'",
        f"'{blocks.format(0)}'",
    ]
    assert "[2, 64, 32] in the student" in problems[0].reason
    assert all("[batch, width]" in problem.remedy for problem in problems)
