"""Devices that a machine does not have are refused before any step."""

from __future__ import annotations

import pytest

from compressor.engine import device
from compressor.errors import UsageError


@pytest.mark.parametrize(
    ("gpus", "torch", "message"),
    [((), "2.13.0+cu130", "shows no GPU"), (("a GPU",), "2.13.0+cpu", "is built without CUDA")],
)
def test_a_device_that_is_not_there_is_refused(monkeypatch, gpus, torch, message):
    monkeypatch.setattr(device, "list_gpus", lambda: gpus)
    monkeypatch.setattr(device, "version", lambda _: torch)
    with pytest.raises(UsageError, match=message):
        device.check_device("cuda")
    device.check_device("cpu")


def test_a_gpu_with_a_torch_for_it_is_accepted(monkeypatch):
    monkeypatch.setattr(device, "list_gpus", lambda: ("a GPU",))
    monkeypatch.setattr(device, "version", lambda _: "2.13.0+cu130")
    device.check_device("cuda")
