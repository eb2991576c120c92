"""Quantizable layers discovered from a graph: their norms, signs and consumers."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from compressor.errors import RequirementError
from compressor.models.capabilities.traced_layers import TracedLayers
from tests.support.tiny_models import CLASSIFIER, PHONE, build_model, random_inputs


class Net(nn.Module):
    """A module with every pattern that discovery distinguishes."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, bias=False)
        self.norm = nn.BatchNorm2d(4)
        self.second = nn.Conv2d(4, 4, 1)
        self.block = Block()
        self.third = nn.Conv2d(4, 4, 1)
        self.twice = nn.Linear(4, 4)
        self.table = nn.Embedding(5, 4)
        self.tied = nn.Linear(4, 5, bias=False)
        self.tied.weight = self.table.weight

    def forward(self, image):
        x = self.block(self.second(functional.relu6(self.norm(self.stem(image)))))
        x = functional.relu(self.third(x)).mean(dim=(2, 3))
        x = self.twice(functional.gelu(self.twice(x)))
        return {"logits": self.tied(x) + self.table(torch.zeros(1, dtype=torch.int64)).sum()}


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Conv2d(4, 4, 1)
        self.out = nn.Conv2d(4, 4, 1)

    def forward(self, x):
        return x + self.out(functional.relu(self.inner(x)))


def trace(module, batch, float_layers=()):
    layers = TracedLayers(module.eval(), batch)
    quantized = [name for name in layers.names if name not in float_layers]
    return layers, layers.contexts(quantized)


def test_the_context_of_each_layer_follows_its_use():
    layers, contexts = trace(Net(), {"image": torch.randn(2, 3, 8, 8)})
    assert layers.names == ("stem", "second", "block.inner", "block.out", "third", "twice")
    assert layers.left_out == {"tied": "its weight is used elsewhere too"}
    assert {name: use.norm for name, use in contexts.items() if use.norm} == {"stem": "norm"}
    assert {name for name, use in contexts.items() if use.nonnegative} == {"second", "block.out"}
    # `second` is read by the block, which rounds its input; `third` only by a mean
    assert {name for name, use in contexts.items() if use.rounded} == {
        "stem",
        "second",
        "block.inner",
    }
    assert {name for name, use in contexts.items() if use.clipped} == {
        "stem",
        "block.inner",
        "third",
    }
    assert {name: use.around for name, use in contexts.items() if use.around} == {
        "block.inner": "block"
    }


def test_a_float_layer_rounds_nothing():
    batch = {"image": torch.randn(2, 3, 8, 8)}
    _, without_second = trace(Net(), batch, float_layers=["second"])
    assert not without_second["stem"].rounded
    _, without_out = trace(Net(), batch, float_layers=["block.out"])
    assert without_out["block.inner"].around is None
    assert not without_out["block.inner"].rounded


def names_of(model, types):
    return [name for name, module in model.named_modules() if isinstance(module, types)]


def test_every_linear_and_convolutional_layer_of_the_families_is_found():
    for family, preset in (
        (PHONE, "tiny"),
        (PHONE, "bed-teacher"),
        (CLASSIFIER, "small"),
        (CLASSIFIER, "small-vit"),
    ):
        config = family.presets[preset]
        model = build_model(family, config)
        layers, contexts = trace(model, random_inputs(family, config, 3))
        types = nn.Linear | nn.Conv1d | nn.Conv2d
        assert sorted(layers.names) == sorted(names_of(model, types))
        norms = names_of(model, nn.BatchNorm1d | nn.BatchNorm2d)
        assert sorted(use.norm for use in contexts.values() if use.norm) == sorted(norms)


class SecondInput(nn.Module):
    """A module whose block adds its second input."""

    def __init__(self):
        super().__init__()
        self.block = SecondBlock()
        self.stem = nn.Conv2d(3, 4, 1)

    def forward(self, image):
        image = image * 2
        return {"logits": self.block(image, self.stem(image))}


class SecondBlock(Block):
    def forward(self, image, x):
        return x + self.out(functional.relu(self.inner(x))) + image.mean()


def test_only_the_first_input_of_a_module_is_rounded_as_a_whole():
    _, contexts = trace(SecondInput(), {"image": torch.randn(2, 3, 8, 8)})
    assert {use.around for use in contexts.values()} == {None}


class Signs(nn.Module):
    def __init__(self):
        super().__init__()
        self.padded, self.below, self.sum, self.difference = (nn.Conv2d(3, 3, 1) for _ in range(4))

    def forward(self, image):
        x = functional.relu(image)
        self.padded(functional.pad(x, (1, 1)))
        self.below(functional.pad(x, (1, 1), value=-1.0))
        self.sum(torch.add(x, x.abs(), alpha=2))
        return {"logits": self.difference(torch.add(x, x.abs(), alpha=-1))}


def test_padding_and_subtraction_can_make_values_negative():
    _, contexts = trace(Signs(), {"image": torch.randn(2, 3, 8, 8)})
    assert {name for name, use in contexts.items() if use.nonnegative} == {"padded", "sum"}


class Branching(nn.Module):
    """A module whose code branches on values."""

    def forward(self, image):
        return {"logits": image if image.sum() > 0 else -image}


def test_a_module_that_torch_cannot_trace_is_named_with_the_reason():
    with pytest.raises(RequirementError, match="the layers of Branching cannot be found") as error:
        TracedLayers(Branching(), {"image": torch.ones(2, 3)})
    assert "GuardOnDataDependent" in error.value.what


class Head(nn.Conv1d):
    """A convolution of values whose channels are last, as the CTC head of Parakeet."""

    def forward(self, x):
        return super().forward(x.transpose(1, 2)).transpose(1, 2)


def test_a_layer_that_computes_otherwise_than_its_base_stays_in_float():
    class Recognizer(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.head = nn.Linear(4, 4), Head(4, 3, 1)

        def forward(self, x):
            return {"logits": self.head(self.body(x))}

    layers, _ = trace(Recognizer(), {"x": torch.randn(2, 5, 4)})
    assert layers.names == ("body",)
    assert layers.left_out == {"head": "Head has a `forward` of its own"}
