"""The tiny family and its data, found as a plugin here and in the processes that are started."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from compressor.config import discovery

PLUGIN = Path(__file__).parent / "plugin"


@pytest.fixture(autouse=True)
def tiny_plugin(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    discovery._group.cache_clear()
    monkeypatch.syspath_prepend(PLUGIN)
    monkeypatch.setenv("PYTHONPATH", str(PLUGIN), prepend=":")
    yield
    discovery._group.cache_clear()
    discovery.load.cache_clear()
    sys.modules.pop("tiny", None)


@pytest.fixture
def tiny_model(tiny_plugin: None, tmp_path: Path) -> Path:
    """A freshly initialised model in a folder."""
    import torch

    family = discovery.load(discovery.FAMILIES, "tiny")
    torch.manual_seed(0)
    family.save(family.build(family.Config()), family.Config(), tmp_path / "model")
    return tmp_path / "model"
