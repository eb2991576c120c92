"""What is found in a module's graph: layers, their normalizations, signs, and who reads what."""

import torch
from torch import nn
from torch.nn import functional

from compressor.models.capabilities.traced_layers import TracedLayers
from tests.support.tiny_models import CLASSIFIER, PHONE, build_model, random_inputs


class Net(nn.Module):
    """A bit of everything."""

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


def found(module, batch, without=()):
    graph = TracedLayers(module.eval(), batch)
    return graph, graph.contexts([name for name in graph.names if name not in without])


def test_each_layer_is_seen_as_it_is_used():
    graph, layers = found(Net(), {"image": torch.randn(2, 3, 8, 8)})
    assert graph.names == ("stem", "second", "block.inner", "block.out", "third", "twice")
    assert graph.left_out == ("tied",)
    assert {name: one.norm for name, one in layers.items() if one.norm} == {"stem": "norm"}
    assert {name for name, one in layers.items() if one.nonnegative} == {"second", "block.out"}
    # second is read by the block, whose input is rounded as a whole; third only by a mean
    assert {name for name, one in layers.items() if one.rounded} == {
        "stem",
        "second",
        "block.inner",
    }
    assert {name for name, one in layers.items() if one.clipped} == {"stem", "block.inner", "third"}
    assert {name: one.around for name, one in layers.items() if one.around} == {
        "block.inner": "block"
    }


def test_what_stays_in_float_rounds_nothing():
    batch = {"image": torch.randn(2, 3, 8, 8)}
    _, without_second = found(Net(), batch, without=["second"])
    assert not without_second["stem"].rounded
    _, without_out = found(Net(), batch, without=["block.out"])
    assert without_out["block.inner"].around is None
    assert not without_out["block.inner"].rounded


def test_every_matrix_of_the_families_is_found():
    for family, preset in (
        (PHONE, "tiny"),
        (PHONE, "bed-teacher"),
        (CLASSIFIER, "small"),
        (CLASSIFIER, "small-vit"),
    ):
        config = family.presets[preset]
        model = build_model(family, config)
        graph, layers = found(model, random_inputs(family, config, 3))
        wanted = [
            name
            for name, one in model.named_modules()
            if isinstance(one, nn.Linear | nn.Conv1d | nn.Conv2d)
        ]
        assert sorted(graph.names) == sorted(wanted)
        norms = [
            name
            for name, one in model.named_modules()
            if isinstance(one, nn.BatchNorm1d | nn.BatchNorm2d)
        ]
        assert sorted(one.norm for one in layers.values() if one.norm) == sorted(norms)


class Second(nn.Module):
    """A block whose second input is what is added."""

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
    _, layers = found(Second(), {"image": torch.randn(2, 3, 8, 8)})
    assert {one.around for one in layers.values()} == {None}


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


def test_what_padding_and_subtraction_do_to_signs():
    _, layers = found(Signs(), {"image": torch.randn(2, 3, 8, 8)})
    assert {name for name, one in layers.items() if one.nonnegative} == {"padded", "sum"}
