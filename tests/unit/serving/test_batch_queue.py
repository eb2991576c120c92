"""The queue of predictions: batches, the bound of the wait, errors, and the power governor."""

from __future__ import annotations

import math
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from compressor.data.contract import Batch
from compressor.errors import CompressError
from compressor.evaluation.energy_meters import (
    BatteryMeter,
    Meter,
    NvmlMeter,
    RaplMeter,
    find_meter,
)
from compressor.serving.batch_queue import BatchQueue, QueueFullError, Result, Work
from compressor.serving.metrics import Metrics
from compressor.serving.power import (
    CountActuator,
    FrequencyActuator,
    PowerBudget,
    PowerGovernor,
)
from compressor.serving.served_models import add_energy


class Gate:
    """A compute function that waits, and notes the sizes of its batches."""

    def __init__(self) -> None:
        self.open, self.sizes = threading.Event(), []

    def __call__(self, feeds: Batch) -> Batch:
        assert self.open.wait(20)
        self.sizes.append(len(feeds["x"]))
        return {"y": feeds["x"] * 2}


def work(values: list[float], results: list[Result], width: int = 1) -> Work:
    array = np.repeat(np.array(values, np.float32)[:, None], width, axis=1)
    return Work({"x": array}, len(values), results.append, (width,))


def wait_for(results: list, count: int) -> None:
    end = time.monotonic() + 20
    while len(results) < count:
        assert time.monotonic() < end
        time.sleep(0.001)


def test_what_waits_is_computed_in_batches_and_each_gets_its_own_rows() -> None:
    gate, results = Gate(), [[] for _ in range(9)]
    queue = BatchQueue([gate], max_batch=4, max_wait_seconds=10)
    for number in range(9):
        queue.submit([work([number], results[number])])
    gate.open.set()
    for number, got in enumerate(results):
        wait_for(got, 1)
        assert got[0]["y"].tolist() == [[2 * number]]
    queue.close()
    assert max(gate.sizes) == 4
    assert sum(gate.sizes) == 9


def test_samples_of_other_shapes_do_not_share_a_batch() -> None:
    gate, results = Gate(), []
    queue = BatchQueue([gate], max_batch=8, max_wait_seconds=10)
    for width in (1, 2, 1, 2, 1):
        queue.submit([work([1], results, width)])
    gate.open.set()
    wait_for(results, 5)
    queue.close()
    assert sorted(gate.sizes, reverse=True)[:2] in ([3, 2], [2, 2])


def test_a_request_that_would_wait_too_long_is_refused() -> None:
    def slow(feeds: Batch) -> Batch:
        time.sleep(0.05)
        return feeds

    results: list[Result] = []
    queue = BatchQueue([slow], max_batch=1, max_wait_seconds=0.1)
    queue.submit([work([1], results)])
    wait_for(results, 1)
    with pytest.raises(QueueFullError, match="the bound is 100 ms") as caught:
        for _ in range(20):
            queue.submit([work([1], results)])
    assert 0.1 <= caught.value.retry_after_seconds < 2
    queue.close()


def test_an_error_reaches_the_requests_of_its_batch_and_the_worker_lives_on() -> None:
    def compute(feeds: Batch) -> Batch:
        if feeds["x"].max() > 5:
            raise ValueError("too large")
        return feeds

    results: list[Result] = []
    queue = BatchQueue([compute], max_batch=1, max_wait_seconds=10)
    queue.submit([work([9], results)])
    queue.submit([work([1], results)])
    wait_for(results, 2)
    queue.close()
    assert isinstance(results[0], CompressError)
    assert not isinstance(results[1], CompressError)


def test_a_cancelled_request_is_not_computed() -> None:
    gate, results = Gate(), []
    queue = BatchQueue([gate], max_batch=1, max_wait_seconds=10)
    first, second, third = (work([n], results) for n in range(3))
    queue.submit([first])
    queue.submit([second, third])
    second.is_cancelled = True
    gate.open.set()
    wait_for(results, 2)
    queue.close()
    assert [result["y"].tolist() for result in results] == [[[0]], [[4]]]
    assert queue.waiting_samples == queue.running_samples == 0


def test_a_closed_queue_finishes_what_waits_and_takes_nothing_more() -> None:
    gate, results = Gate(), []
    queue = BatchQueue([gate, gate], max_batch=2, max_wait_seconds=10)
    queue.submit([work([1], results) for _ in range(6)])
    gate.open.set()
    queue.close()
    assert len(results) == 6
    with pytest.raises(QueueFullError):
        queue.submit([work([1], results)])


def test_fewer_workers_still_take_everything() -> None:
    gate, results = Gate(), []
    gate.open.set()
    queue = BatchQueue([gate] * 4, max_batch=1, max_wait_seconds=10)
    queue.limit(1)
    for _ in range(40):
        queue.submit([work([1], results)])
    wait_for(results, 40)
    queue.close()


class FakeMeter(Meter):
    """A meter whose power is set by the test."""

    name = "fake"

    def __init__(self) -> None:
        self.total = 0.0

    def joules(self) -> float:
        return self.total


def test_the_governor_follows_the_rule_within_its_limits() -> None:
    meter, counts = FakeMeter(), []
    governor = PowerGovernor(
        meter, PowerBudget(10.0, lowest=0.3), [CountActuator(10, counts.append)]
    )

    def step(watts: float) -> float:
        meter.total += watts
        return governor.step(1.0)

    assert step(8.0) == 1.0, "between 0.7 and 0.9 of the budget nothing changes"
    assert step(9.5) == pytest.approx(0.8)
    assert step(9.5) == pytest.approx(0.64)
    assert step(8.0) == pytest.approx(0.64)
    assert step(5.0) == pytest.approx(0.704)
    assert [step(20.0) for _ in range(9)][-1] == 0.3
    assert [step(1.0) for _ in range(20)][-1] == 1.0
    assert counts[0] == 8
    assert min(counts) == 3
    governor.close()
    assert counts[-1] == 10


def write(folder: Path, **files: object) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, value in files.items():
        (folder / name).write_text(f"{value}\n")
    return folder


def test_rapl_counts_packages_and_continues_a_counter_that_starts_again(tmp_path: Path) -> None:
    zone = write(
        tmp_path / "intel-rapl:0", name="package-0", energy_uj=900, max_energy_range_uj=999
    )
    write(tmp_path / "intel-rapl:0:0", name="core", energy_uj=1, max_energy_range_uj=999)
    for other, name in (("intel-rapl:1", "psys"), ("intel-rapl-mmio:0", "package-0")):
        write(tmp_path / other, name=name, energy_uj=1, max_energy_range_uj=999)
    meter = RaplMeter.find(tmp_path)
    write(zone, energy_uj=950)
    assert meter.joules() == pytest.approx(50e-6)
    write(zone, energy_uj=30)
    assert meter.joules() == pytest.approx(130e-6)
    assert meter.name == "RAPL package-0"


def test_a_battery_is_a_meter_while_it_discharges(tmp_path: Path) -> None:
    battery = write(
        tmp_path / "battery",
        type="Battery",
        status="Discharging",
        current_now=-500_000,
        voltage_now=4_000_000,
    )
    meter = BatteryMeter.find(tmp_path)
    time.sleep(0.05)
    assert meter.joules() == pytest.approx(2.0 * 0.05, rel=0.9)
    write(battery, status="Charging")
    assert find_meter(tmp_path / "none", tmp_path) is None


def test_without_a_counter_nothing_is_measured(tmp_path: Path) -> None:
    assert find_meter(tmp_path, tmp_path) is None


def test_the_frequency_is_lowered_where_its_files_are_writable(tmp_path: Path) -> None:
    policy = write(
        tmp_path / "cpufreq" / "policy0",
        cpuinfo_min_freq=1000,
        cpuinfo_max_freq=3000,
        scaling_max_freq=3000,
    )
    actuator = FrequencyActuator.find(tmp_path)
    actuator.set_level(0.5)
    assert (policy / "scaling_max_freq").read_text() == "2000"
    assert FrequencyActuator.find(tmp_path / "nothing") is None


def test_a_governor_whose_counter_fails_stays_at_the_lowest_level() -> None:
    class Failing(Meter):
        name, reads = "failing", 0

        def joules(self) -> float:
            self.reads += 1
            if self.reads > 1:
                raise OSError("the counter is gone")
            return 0.0

    levels: list[int] = []
    budget = PowerBudget(5.0, interval_seconds=0.01)
    governor = PowerGovernor(Failing(), budget, [CountActuator(10, levels.append)])
    governor.start()
    wait_for(levels, 1)
    assert levels == [1]
    assert math.isnan(governor.watts)
    governor.close()
    assert levels[-1] == 10


class Unreadable(Meter):
    """A counter that can be read until the test breaks it."""

    name = "unreadable"
    is_broken = False

    def joules(self) -> float:
        if self.is_broken:
            raise OSError("the counter is gone")
        return 5.0


def test_metrics_go_on_where_a_counter_can_no_longer_be_read() -> None:
    class Served:
        def outputs(self) -> int:
            return 2

    metrics, meter = Metrics(), Unreadable()
    add_energy(metrics, meter, Served())  # type: ignore[arg-type]
    assert metrics.value("joules_per_output") == 2.5
    meter.is_broken = True
    text = metrics.text().decode()
    assert "autoglm_energy_joules NaN" in text
    assert "autoglm_joules_per_output NaN" in text
    assert "not measured" in text


def test_a_file_without_a_number_is_an_unreadable_counter(tmp_path: Path) -> None:
    zone = write(
        tmp_path / "intel-rapl:0", name="package-0", energy_uj=900, max_energy_range_uj=999
    )
    meter = RaplMeter.find(tmp_path)
    write(zone, energy_uj="")
    with pytest.raises(OSError, match="energy_uj holds no number"):
        meter.joules()
    assert RaplMeter.find(tmp_path) is None


def test_an_error_of_the_driver_is_an_unreadable_counter() -> None:
    class Driver:
        class NVMLError(Exception):
            pass

        is_lost = False
        nvmlInit = staticmethod(lambda: None)
        nvmlDeviceGetCount = staticmethod(lambda: 1)
        nvmlDeviceGetHandleByIndex = staticmethod(lambda index: index)

        def nvmlDeviceGetTotalEnergyConsumption(self, gpu: int) -> int:  # noqa: N802
            if self.is_lost:
                raise self.NVMLError("GPU is lost")
            return 4000

    driver = Driver()
    meter = NvmlMeter(driver)
    assert meter.joules() == 0
    driver.is_lost = True
    with pytest.raises(OSError, match="GPU is lost"):
        meter.joules()
