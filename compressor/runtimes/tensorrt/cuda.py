"""The GPUs of this machine, read from the CUDA driver without torch or TensorRT."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

_LIBRARIES = ("libcuda.so.1", "nvcuda.dll")
_MAJOR, _MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, _MINOR


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU."""

    name: str
    target: str
    """Compute capability in the form of ``targets``, such as ``sm86``."""


def list_gpus() -> tuple[Gpu, ...]:
    """Return the GPUs in the driver's order; none if there is no driver or it does not start."""
    driver = _load_driver()
    if driver is None or driver.cuInit(0) != 0:
        return ()
    count = ctypes.c_int()
    driver.cuDeviceGetCount(ctypes.byref(count))
    return tuple(_describe_gpu(driver, index) for index in range(count.value))


def _load_driver() -> ctypes.CDLL | None:
    for name in _LIBRARIES:
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    return None


def _describe_gpu(driver: ctypes.CDLL, index: int) -> Gpu:
    device, number = ctypes.c_int(), ctypes.c_int()
    driver.cuDeviceGet(ctypes.byref(device), index)
    capability = []
    for attribute in (_MAJOR, _MINOR):
        driver.cuDeviceGetAttribute(ctypes.byref(number), attribute, device)
        capability.append(number.value)
    name = ctypes.create_string_buffer(128)
    driver.cuDeviceGetName(name, len(name), device)
    return Gpu(name.value.decode(errors="replace"), f"sm{capability[0]}{capability[1]}")
