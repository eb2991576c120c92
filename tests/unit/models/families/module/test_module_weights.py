"""Weights of a module from a file: prefixes of wrappers, and what does not fit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from compressor.errors import ModelError
from compressor.models.families.module.weights import check_weights, set_weights

FILE = Path("weights.safetensors")


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 1)
        self.norm = nn.BatchNorm2d(4)
        self.head = nn.Linear(4, 4)


def weights(prefix: str = "") -> dict[str, Tensor]:
    torch.manual_seed(1)
    return {prefix + name: torch.rand_like(value.float()) if value.is_floating_point() else value
            for name, value in Net().state_dict().items()}  # fmt: skip


@pytest.mark.parametrize("prefix", ["", "module.", "model.", "_orig_mod.", "module.model.net."])
def test_prefixes_of_wrappers_are_left_out(prefix: str) -> None:
    net, stored = Net(), weights(prefix)
    check_weights(net, stored, FILE)
    set_weights(net, stored)
    assert torch.equal(net.head.weight, stored[f"{prefix}head.weight"])


def test_a_wrapper_takes_weights_without_its_prefix() -> None:
    wrapper = nn.ModuleDict({"net": Net()})
    check_weights(wrapper, weights(), FILE)
    set_weights(wrapper, weights())
    assert torch.equal(wrapper.state_dict()["net.head.weight"], weights()["head.weight"])


def test_files_without_counters_of_batch_norms_are_accepted() -> None:
    stored = {name: value for name, value in weights().items() if "num_batches" not in name}
    check_weights(Net(), stored, FILE)
    set_weights(Net(), stored)


def test_a_layer_of_another_name_is_no_prefix() -> None:
    other = nn.ModuleDict({"tail": nn.Linear(4, 4)})
    stored = {name: value for name, value in weights().items() if name.startswith("head.")}
    with pytest.raises(ModelError) as error:
        check_weights(other, stored, FILE)
    assert error.match(r"missing: tail.weight") and error.match(r"unexpected: head.bias")


def test_every_tensor_that_does_not_fit_is_named() -> None:
    stored = weights("module.")
    del stored["module.stem.weight"]
    stored["module.head.bias"] = torch.zeros(3)
    stored["module.more"] = torch.zeros(1)
    with pytest.raises(ModelError) as error:
        check_weights(Net(), stored, FILE)
    for line in ("missing: stem.weight", r"head.bias: float32 \[3\]", "unexpected: more"):
        assert error.match(f"(?s).*{line}")
