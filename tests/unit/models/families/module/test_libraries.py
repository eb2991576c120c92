"""Models of libraries: what their constructors and missing operators are reported as."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from compressor.errors import ModelError
from compressor.models.families.module.config import ModuleConfig
from compressor.models.families.module.libraries import Timm
from compressor.models.families.module.probing import complete


class NeedsOperators(nn.Module):
    def forward(self, image: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("Couldn't load custom C++ ops: torchvision was built for another torch")


def library(monkeypatch: pytest.MonkeyPatch, create: object) -> None:
    fake = SimpleNamespace(list_models=lambda: ["net"], create_model=create)
    monkeypatch.setattr(Timm, "_import", lambda _: fake)


def test_an_error_of_a_constructor_names_its_type_and_the_arguments(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sizes = {"small": 1}
    library(monkeypatch, lambda _, size, **__: sizes[size])
    with pytest.raises(ModelError, match=r"cannot create net: KeyError: 'large'") as caught:
        Timm().create("net", {"size": "large"})
    assert caught.value.remedy is not None
    assert caught.value.remedy.endswith("correct size")


def test_a_torchvision_without_its_library_is_not_taken_for_wrong_inputs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    library(monkeypatch, lambda *_, **__: NeedsOperators())
    inputs = [{"name": "image", "shape": ["batch", 3]}]
    config = ModuleConfig.model_validate({"timm": "net", "inputs": inputs}, strict=False)
    with pytest.raises(ModelError, match="custom C") as caught:
        complete(config, None)
    assert caught.value.remedy is not None
    assert caught.value.remedy.startswith("the library of torchvision does not load")
