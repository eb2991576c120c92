"""Hold a power budget: less work at once near the budget, more below it."""

from __future__ import annotations

import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from compressor.evaluation.energy_meters import Meter

_HIGH, _LOW = 0.9, 0.7
"""Shares of the budget above which less, and below which more work is done at once."""
_LESS, _MORE = 0.8, 1.1
_CPUFREQ = Path("/sys/devices/system/cpu")


@dataclass(frozen=True, slots=True)
class PowerBudget:
    """Limits of a governor."""

    watts: float
    lowest: float = 0.1
    """Smallest share of the full speed."""
    interval_seconds: float = 1.0


class Actuator(ABC):
    """Something that changes how much work is done at once."""

    @abstractmethod
    def set_level(self, level: float) -> None:
        """Set the share of the full speed, above 0 and at most 1."""


class CountActuator(Actuator):
    """A whole number, such as workers, rows or samples of a batch, from 1 to its full value."""

    def __init__(self, full: int, apply: Callable[[int], None]) -> None:
        self._full, self._apply = full, apply

    def set_level(self, level: float) -> None:
        """See ``Actuator.set_level``."""
        self._apply(max(1, round(self._full * level)))


class FrequencyActuator(Actuator):
    """The highest frequency of the processor, where the files of cpufreq are writable."""

    def __init__(self, policies: Sequence[Path]) -> None:
        """Open policies, each a folder with ``cpuinfo_min_freq`` and ``scaling_max_freq``.

        Level 1 is the highest frequency that is allowed now.
        """
        self._policies = [
            (
                policy / "scaling_max_freq",
                int((policy / "cpuinfo_min_freq").read_text()),
                int((policy / "scaling_max_freq").read_text()),
            )
            for policy in policies
        ]

    @classmethod
    def find(cls, root: Path = _CPUFREQ) -> FrequencyActuator | None:
        """Return an actuator of all processors; None if their files are not there or read-only."""
        policies = sorted(root.glob("cpufreq/policy*"))
        if not policies:
            return None
        with suppress(OSError, ValueError):
            actuator = cls(policies)
            actuator.set_level(1.0)
            return actuator
        return None

    def set_level(self, level: float) -> None:
        """See ``Actuator.set_level``; level 0 would be the lowest frequency."""
        for file, lowest, highest in self._policies:
            file.write_text(str(round(lowest + (highest - lowest) * level)))


class PowerGovernor:
    """Adjusts the level of work to a power budget.

    Above 0.9 of the budget the level falls by 20 %, below 0.7 it rises by 10 %; in between it
    stays. It never leaves its limits.

    Attributes:
        level: the present share of the full speed.
        watts: mean power of the last interval; 0 before the first, NaN once the counter or the
            actuators fail.
    """

    def __init__(self, meter: Meter, budget: PowerBudget, actuators: Sequence[Actuator]) -> None:
        """Read the counter; nothing is changed before ``start``.

        Raises:
            OSError: the counter cannot be read.
        """
        self._meter, self._budget, self._actuators = meter, budget, tuple(actuators)
        self.level, self.watts = 1.0, 0.0
        self._joules, self._time = meter.joules(), time.monotonic()
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def step(self, seconds: float | None = None) -> float:
        """Measure the power since the last step, and adjust the level; return it.

        Args:
            seconds: time since the last step; by default the clock's.
        """
        joules, now = self._meter.joules(), time.monotonic()
        elapsed = seconds if seconds is not None else now - self._time
        if elapsed <= 0:
            return self.level
        self.watts = (joules - self._joules) / elapsed
        self._joules, self._time = joules, now
        share = self.watts / self._budget.watts
        factor = _LESS if share > _HIGH else _MORE if share < _LOW else 1.0
        level = min(1.0, max(self._budget.lowest, self.level * factor))
        if level != self.level:
            self.level = level
            for actuator in self._actuators:
                actuator.set_level(level)
        return level

    def start(self) -> None:
        """Adjust the level on a thread, once each interval, until ``close``."""
        self._thread = threading.Thread(target=self._run, name="power", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End, at full level as far as the actuators' files can be written."""
        self._ended.set()
        if self._thread is not None:
            self._thread.join()
        self._set_all(1.0)

    def _run(self) -> None:
        while not self._ended.wait(self._budget.interval_seconds):
            try:
                self.step()
            except OSError:  # the counter, or a file of cpufreq: no step can hold the budget
                self._fall_back()
                return

    def _fall_back(self) -> None:
        """Stay at the lowest level; ``watts`` is NaN, since the power is no longer known."""
        self.level, self.watts = self._budget.lowest, float("nan")
        self._set_all(self.level)

    def _set_all(self, level: float) -> None:
        for actuator in self._actuators:
            with suppress(OSError):
                actuator.set_level(level)
