"""Calls by name or position, and outputs from whatever ``forward`` returns."""

from __future__ import annotations

from collections import OrderedDict, namedtuple
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from compressor.errors import ModelError
from compressor.models.families.module.interface import (
    adapt,
    call_style,
    named_outputs,
    pick,
    pick_trained,
)

ONE, TWO = torch.ones(2, 3), torch.ones(2, 4, 5)
Pair = namedtuple("Pair", ["first", "second"])  # noqa: PYI024 - as users write it


@dataclass
class Result:
    loss: Tensor | None
    scores: Tensor


@pytest.mark.parametrize(
    ("returned", "wanted", "expected"),
    [
        (ONE, None, {"logits": ()}),
        (TWO, None, {"output": ()}),
        (ONE, ("embedding",), {"embedding": ()}),
        ((ONE, TWO), None, {"output_0": (0,), "output_1": (1,)}),
        ((ONE, None, TWO), ("logits", "states"), {"logits": (0,), "states": (2,)}),
        ((ONE, TWO), {"logits": (0,)}, {"logits": (0,)}),
        (Pair(ONE, TWO), ("a", "b"), {"a": ("first",), "b": ("second",)}),
        (Pair(ONE, (TWO, TWO)), None, {
            "first": ("first",), "second_0": ("second", 0), "second_1": ("second", 1),
        }),
        (Pair(ONE, TWO), {"logits": (0,), "states": ("second",)}, {
            "logits": ("first",), "states": ("second",),
        }),
        ({"logits": ONE, "states": [TWO, TWO]}, None, {
            "logits": ("logits",), "states_0": ("states", 0), "states_1": ("states", 1),
        }),
        (OrderedDict(scores=ONE, states=TWO), {"logits": ("scores",)}, {"logits": ("scores",)}),
        ({"scores": ONE, "states": TWO}, ("states",), {"states": ("states",)}),
        (Result(None, ONE), None, {"scores": ("scores",)}),
    ],
)  # fmt: skip
def test_outputs_have_names(returned: Any, wanted: Any, expected: dict[str, Any]) -> None:
    outputs = named_outputs(returned, wanted)
    assert outputs == expected
    assert all(isinstance(pick(returned, path), Tensor) for path in outputs.values())


@pytest.mark.parametrize(
    ("returned", "wanted", "expected"),
    [
        (None, None, "returns NoneType without tensors"),
        ((ONE, TWO), ("logits",), "returns output_0, output_1"),
        ({"scores": ONE}, {"logits": ("absent",)}, "no tensor for logits"),
    ],
    ids=["nothing", "number", "key"],
)
def test_outputs_that_are_not_there_are_named(returned: Any, wanted: Any, expected: str) -> None:
    with pytest.raises(ModelError, match=expected):
        named_outputs(returned, wanted)


class ByPosition(nn.Module):
    def forward(self, x: Tensor, scale: Tensor) -> Tensor:
        return x * scale


class ByKeyword(nn.Module):
    def forward(self, *, image: Tensor, scale: Tensor | None = None) -> dict[str, Tensor]:
        return {"out": image if scale is None else image * scale}


class ByBoth(nn.Module):
    def forward(self, *tensors: Tensor, **more: Tensor) -> Tensor:
        return tensors[0] + tensors[1]


class ByDict(nn.Module):
    def forward(self, batch):  # type: ignore[no-untyped-def]
        return batch["a"] + batch["b"]


class ByAnnotatedDict(nn.Module):
    def forward(self, batch: dict[str, Tensor], scale: float = 1.0) -> Tensor:
        return batch["a"] * scale


@pytest.mark.parametrize(
    ("module", "inputs", "expected"),
    [
        (ByPosition(), ("image", "factor"), "position"),
        (ByPosition(), ("image", "scale"), "position"),
        (ByPosition(), ("scale", "x"), "keyword"),
        (ByKeyword(), ("scale", "image"), "keyword"),
        (ByBoth(), ("a", "b"), "position"),
        (ByDict(), ("a", "b"), "mapping"),
        (ByDict(), ("a",), "position"),
        (ByAnnotatedDict(), ("a",), "mapping"),
    ],
)
def test_inputs_go_by_keyword_where_the_names_are_those_of_forward(
    module: nn.Module, inputs: tuple[str, ...], expected: str
) -> None:
    assert call_style(module, inputs) == expected


@pytest.mark.parametrize("inputs", [("scale", "image"), ("a", "b", "c")], ids=["order", "number"])
def test_inputs_in_another_order_than_their_names_are_refused(inputs: tuple[str, ...]) -> None:
    with pytest.raises(ModelError, match="`forward` takes x, scale"):
        call_style(ByPosition(), inputs)


def test_an_adapted_module_keeps_its_class_and_its_names() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 2)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return self.layer(x), x

    net = Net()
    expected = net(ONE)
    names = list(net.state_dict())
    adapted = adapt(net, ("image",), {"input": (1,), "logits": (0,)}, "position")
    outputs = adapted(image=ONE)
    assert list(outputs) == ["input", "logits"]
    assert torch.equal(outputs["logits"], expected[0])
    assert isinstance(adapted, Net)
    assert (type(adapted).__name__, list(adapted.state_dict())) == ("Net", names)
    program = torch.export.export(adapted, (), {"image": ONE}, strict=False)
    assert torch.equal(program.module()(image=ONE)["logits"], expected[0])


@pytest.mark.parametrize(
    "returned", [ONE, Pair(ONE, TWO), [ONE, TWO], {"logits": ONE, "auxiliary": TWO}]
)
def test_auxiliary_outputs_of_training_mode_are_left_out(returned: Any) -> None:
    assert pick_trained(returned, ()) is ONE


@pytest.mark.parametrize(("returned", "path"), [([[ONE]], ()), ({"loss": ONE}, ("logits",))])
def test_training_mode_without_the_outputs_of_evaluation_mode_is_refused(
    returned: Any, path: tuple[str, ...]
) -> None:
    with pytest.raises(ModelError, match="in training mode `forward` returns"):
        pick_trained(returned, path)
