"""Applying and undoing updates, killed before each file operation, with and without power loss."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from compressor.artifacts import exchange
from compressor.runtimes.delta.apply import apply_package, undo_package
from compressor.runtimes.delta.identity import open_base
from compressor.runtimes.delta.slot import Slot
from tests.support.deltas import application, float_base, make_package, written_adapter
from tests.torture.operations import KILLED, end_before

LAYER = "model.layers.0.self_attn.q_proj"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a base, two packages, and a slot with the first of them."""
    home = tmp_path_factory.mktemp("updates")
    base = float_base(home / "base")
    for counter, outputs in ((1, 64), (2, 32)):
        adapter = written_adapter(home / str(counter) / "model", base, {LAYER: (outputs, 64)})
        file, _ = make_package(adapter, base, home / f"work{counter}", counter=counter)
        file.rename(home / f"{counter}.aglmdelta")
    (home / "slots").mkdir()
    apply_number(home, home / "slots", 1)
    return home


def apply_number(home: Path, place: Path, number: int) -> None:
    """Apply a package to the slot in a folder."""
    apply_package(application(home / f"{number}.aglmdelta", home / "base", place / "out"))


def killed_at(number: int, place: Path, act: Callable[[], object], *, power: bool) -> bool:
    """Run in a child that dies before an operation; return False if it ended before that."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == KILLED
    code = 1
    try:
        end_before(number, place, power=power)
        act()
        code = 0
    finally:
        os._exit(code)


def digest(place: Path) -> str | None:
    """Return the digest of the model in use; None for none."""
    return open_base(place / "out").digest if (place / "out").exists() else None


@pytest.mark.parametrize("can_exchange", [True, False])
@pytest.mark.parametrize("power", [False, True])
@pytest.mark.parametrize("command", ["first", "apply", "undo"])
def test_a_kill_leaves_the_old_model_or_the_new_one(
    command: str,
    power: bool,
    can_exchange: bool,
    home: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if not can_exchange:
        monkeypatch.setattr(exchange, "_renameat2", lambda: None)
    template = tmp_path / "template"
    template.mkdir() if command == "first" else shutil.copytree(home / "slots", template)
    if command == "undo":
        apply_number(home, template, 2)
    old = digest(template)

    def change(place: Path) -> None:
        if command == "undo":
            undo_package(place / "out")
        else:
            apply_number(home, place, 2)

    whole = tmp_path / "whole"
    shutil.copytree(template, whole)
    change(whole)
    new, number = digest(whole), 0
    assert new != old
    while True:
        place = tmp_path / str(number)
        shutil.copytree(template, place)
        if not killed_at(number, place, lambda place=place: change(place), power=power):
            break
        found = digest(place)
        # Without an atomic exchange, no model is there for a moment.
        assert found in {old, new} or (found is None and not can_exchange), number
        slot = Slot(place / "out")
        with slot.locked():
            pass
        found = digest(place)
        assert found in {old, new}, number
        assert slot.state.pending is None
        assert (None if slot.state.current is None else slot.state.current.digest) == found
        if found == old:
            change(place)
        assert digest(place) == new, number
        assert sorted(path.name for path in slot.home.iterdir()) == sorted(
            path.name for path in Slot(whole / "out").home.iterdir()
        )
        shutil.rmtree(place)
        number += 1
    assert number > 5
