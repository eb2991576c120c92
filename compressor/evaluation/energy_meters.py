"""Meters of energy: counters of the processor, of NVIDIA GPUs, and of a battery.

Nothing is estimated. Where a machine has no counter, its energy is not measured.
"""

from __future__ import annotations

import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

_POWERCAP = Path("/sys/class/powercap")
_POWER_SUPPLY = Path("/sys/class/power_supply")
_MICRO = 1e-6


class Meter(ABC):
    """Counts joules.

    Attributes:
        name: what is counted, for messages.
    """

    name: str

    @abstractmethod
    def joules(self) -> float:
        """Return the joules since the meter was opened; may be called from several threads.

        Raises:
            OSError: the counter cannot be read now.
        """


class RaplMeter(Meter):
    """Energy of processor packages, from the files of Linux's powercap (Intel RAPL, AMD too)."""

    def __init__(self, zones: Sequence[Path]) -> None:
        """Open the zones, each a folder with ``energy_uj`` and ``max_energy_range_uj``.

        Raises:
            OSError: a file cannot be read (since 2020 they belong to root alone), or holds no
                number.
        """
        self.name = "RAPL " + ", ".join((zone / "name").read_text().strip() for zone in zones)
        self._zones = tuple(zones)
        self._ranges = [_number(zone / "max_energy_range_uj") for zone in zones]
        self._last = self._read()
        self._total, self._lock = 0.0, threading.Lock()

    @classmethod
    def find(cls, root: Path = _POWERCAP) -> RaplMeter | None:
        """Return a meter of all packages of this machine; None if none can be read."""
        zones = sorted(
            zone
            for zone in root.glob("intel-rapl:*")  # of AMD too; intel-rapl-mmio counts the same
            if zone.name.count(":") == 1 and _is_package(zone)
        )
        if not zones:
            return None
        with suppress(OSError):
            return cls(zones)
        return None

    def joules(self) -> float:
        """See ``Meter.joules``; a counter that starts again at 0 is continued."""
        with self._lock:
            now = self._read()
            for before, after, range_ in zip(self._last, now, self._ranges, strict=True):
                self._total += (after - before) % (range_ + 1) if after < before else after - before
            self._last = now
            return self._total * _MICRO

    def _read(self) -> list[float]:
        return [_number(zone / "energy_uj") for zone in self._zones]


class BatteryMeter(Meter):
    """Energy from a battery, as Android and Linux report it: power, or current times voltage.

    The power is integrated between two readings, so it must be read often.
    """

    def __init__(self, folder: Path) -> None:
        """Open a battery.

        Raises:
            OSError: its files cannot be read, or hold no numbers.
        """
        self.name, self._folder = f"battery {folder.name}", folder
        self._time, self._watts, self._total = time.monotonic(), self._read(), 0.0
        self._lock = threading.Lock()

    @classmethod
    def find(cls, root: Path = _POWER_SUPPLY) -> BatteryMeter | None:
        """Return a meter of the battery, while it discharges; None if there is none."""
        for folder in sorted(root.glob("*")):
            with suppress(OSError):
                kind = (folder / "type").read_text().strip()
                status = (folder / "status").read_text().strip()
                if kind == "Battery" and status == "Discharging":
                    return cls(folder)
        return None

    def joules(self) -> float:
        """See ``Meter.joules``."""
        with self._lock:
            now, watts = time.monotonic(), self._read()
            self._total += (now - self._time) * (self._watts + watts) / 2
            self._time, self._watts = now, watts
            return self._total

    def _read(self) -> float:
        if (self._folder / "power_now").is_file():
            return abs(_number(self._folder / "power_now")) * _MICRO
        amperes = abs(_number(self._folder / "current_now")) * _MICRO
        return amperes * _number(self._folder / "voltage_now") * _MICRO


class NvmlMeter(Meter):
    """Energy of NVIDIA GPUs (Volta and newer), by the driver's library."""

    def __init__(self, nvml: Any) -> None:
        """Open all GPUs.

        Raises:
            OSError: there is no driver, or no counter.
        """
        self._nvml = nvml
        with self._driver_errors():
            nvml.nvmlInit()
            count = nvml.nvmlDeviceGetCount()
            self._gpus = [nvml.nvmlDeviceGetHandleByIndex(index) for index in range(count)]
        self.name = f"NVML, {count} GPUs"
        self._start = self._read()

    @classmethod
    def find(cls) -> NvmlMeter | None:
        """Return a meter of all GPUs; None without GPU, driver or pynvml."""
        try:
            import pynvml
        except ImportError:
            return None
        with suppress(OSError):
            meter = cls(pynvml)
            return meter if meter._gpus else None
        return None

    def joules(self) -> float:
        """See ``Meter.joules``."""
        return self._read() - self._start

    def _read(self) -> float:
        get = self._nvml.nvmlDeviceGetTotalEnergyConsumption
        with self._driver_errors():
            return float(sum(get(gpu) for gpu in self._gpus)) / 1000

    @contextmanager
    def _driver_errors(self) -> Iterator[None]:
        try:
            yield
        except self._nvml.NVMLError as error:
            raise OSError(f"NVML: {error}") from error


class SumMeter(Meter):
    """The sum of several meters."""

    def __init__(self, meters: Sequence[Meter]) -> None:
        self.name = " + ".join(meter.name for meter in meters)
        self._meters = tuple(meters)

    def joules(self) -> float:
        """See ``Meter.joules``."""
        return sum(meter.joules() for meter in self._meters)


def find_meter(powercap: Path = _POWERCAP, power_supply: Path = _POWER_SUPPLY) -> Meter | None:
    """Return the meter of this machine: processor and GPUs, else the battery; None if neither."""
    meters = [meter for meter in (RaplMeter.find(powercap), NvmlMeter.find()) if meter]
    if not meters:
        return BatteryMeter.find(power_supply)
    return meters[0] if len(meters) == 1 else SumMeter(meters)


def _is_package(zone: Path) -> bool:
    try:
        return (zone / "name").read_text().startswith("package")
    except OSError:
        return False


def _number(file: Path) -> float:
    """Return the number in a file; raise ``OSError`` if there is none."""
    text = file.read_text(errors="replace")
    try:
        return float(text)
    except ValueError as error:
        raise OSError(f"{file} holds no number: {text[:40]!r}") from error
