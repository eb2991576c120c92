"""Fixtures for exports of the tiny family of the evaluation's plugin."""

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
    """Install the plugin for one test."""
    discovery._group.cache_clear()
    monkeypatch.syspath_prepend(PLUGIN)
    yield
    discovery._group.cache_clear()
    discovery.load.cache_clear()
    sys.modules.pop("tiny", None)


@pytest.fixture
def parent(tiny_plugin: None, tmp_path: Path) -> Any:
    """Return what the pass reads of the artifact of a tiny model."""
    import torch

    family = discovery.load(discovery.FAMILIES, "tiny")
    torch.manual_seed(0)
    family.save(family.build(family.Config()), family.Config(), tmp_path / "parent")
    return SimpleNamespace(model=tmp_path / "parent")


@pytest.fixture
def context(tiny_plugin: None, tmp_path: Path) -> Callable[..., PassContext]:
    """Return a maker of contexts in which every data set is the tiny one.

    The maker takes a list for the notes, and options of the data set.
    """

    def make(notes: list[str] | None = None, **options: Any) -> PassContext:
        import tiny

        dataset = tiny.TinySet(tiny.TinySourceConfig(source="tiny", **options))
        return PassContext(
            artifacts={},
            data=lambda _: dataset,
            work=tmp_path,
            seed=0,
            threads=1,
            device="cpu",
            artifact_id="ab" * 32,
            progress=lambda *_: None,
            note=(notes if notes is not None else []).append,
        )

    return make
