"""The tiny plugin of the measurement tests, and a context to run the pass in."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from compressor.config import discovery
from compressor.engine.contract import PassContext

PLUGIN = Path(__file__).parents[2] / "evaluation" / "plugin"


@pytest.fixture(autouse=True)
def tiny_plugin(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    discovery._group.cache_clear()
    monkeypatch.syspath_prepend(PLUGIN)
    yield
    discovery._group.cache_clear()
    discovery.load.cache_clear()
    sys.modules.pop("tiny", None)


@pytest.fixture
def parent(tiny_plugin: None, tmp_path: Path) -> Any:
    """What a pass takes of an artifact: its model folder."""
    import torch

    family = discovery.load(discovery.FAMILIES, "tiny")
    torch.manual_seed(0)
    family.save(family.build(family.Config()), family.Config(), tmp_path / "parent")
    return SimpleNamespace(model=tmp_path / "parent")


@pytest.fixture
def context(tiny_plugin: None, tmp_path: Path) -> Callable[..., PassContext]:
    """A context whose every set is the tiny one, changed by keywords; notes go to ``notes``."""

    def make(notes: list[str] | None = None, **changes: Any) -> PassContext:
        import tiny

        dataset = tiny.TinySet(tiny.TinySourceConfig(source="tiny", **changes))
        tell = (notes if notes is not None else []).append
        return PassContext(
            {}, lambda _: dataset, tmp_path, 0, 1, "cpu", "ab" * 32, lambda *_: None, tell
        )

    return make
