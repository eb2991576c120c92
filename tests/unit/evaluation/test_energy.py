"""Tests of energy: joules of repeated calls by a counter, and machines without one."""

import pytest
from pydantic import ValidationError

from compressor.data.contract import SourceContext
from compressor.evaluation import worker
from compressor.evaluation.energy import energy_metrics, measure_energy
from compressor.evaluation.energy_meters import Meter
from compressor.evaluation.measure import evaluation_digest, make_request
from compressor.evaluation.records import EnergyConfig, EnergyReport, EvaluateConfig, LatencyConfig
from compressor.reports.rows.artifact import energy_lines
from compressor.runtimes.call_limit import CallLimit
from compressor.runtimes.formats import StoredModel, format_named

LATENCY = LatencyConfig(data="test", warmup=1, repeats=3, threads=1)
WITH_ENERGY = EvaluateConfig(latency=LATENCY, energy=EnergyConfig(seconds=0.1))


class CallCounter(Meter):
    """Counts 2 joules for each call of a session, and 10 before the first."""

    name = "calls"

    def __init__(self, session):
        self.session, self.calls = session, 0
        compute = session.compute

        def counted(feeds):
            self.calls += 1
            return compute(feeds)

        session.compute = counted

    def joules(self):
        return 10.0 + 2.0 * self.calls


def opened(onnx_model):
    import tiny

    dataset = tiny.TinySet(tiny.TinySourceConfig(source="tiny"))
    batches = [dataset.batch([0, 1, 2, 3]), dataset.batch([4, 5])]
    return StoredModel(format_named("onnx"), onnx_model).open_session(1), batches


def test_joules_are_divided_by_the_samples_of_all_calls(onnx_model):
    session, batches = opened(onnx_model)
    with session:
        meter = CallCounter(session)
        config = EnergyConfig(seconds=0.2)
        report = measure_energy(session, batches, config, meter, lambda *_: None)
    assert report.meter == "calls"
    assert report.joules == 2 * meter.calls
    assert report.samples == 3 * meter.calls + meter.calls % 2
    assert report.seconds >= 0.2
    [metric] = energy_metrics(report)
    assert (metric.name, metric.unit) == ("energy_mj", "mJ")
    assert metric.value == pytest.approx(2000 * meter.calls / report.samples)


def test_without_a_counter_nothing_runs_and_the_report_states_it(onnx_model):
    session, batches = opened(onnx_model)
    with session:
        meter = CallCounter(session)
        report = measure_energy(session, batches, EnergyConfig(), None, lambda *_: None)
    assert meter.calls == 0
    assert report.meter is None
    assert energy_metrics(report) == ()
    assert energy_lines(report) == [
        "Energy was not measured: this machine has no counter that can be read."
    ]
    assert energy_lines(None) == []


def test_a_measurement_has_the_energy_of_its_calls(onnx_model, tmp_path, monkeypatch):
    class Steady(Meter):
        name, total = "steady", 0.0

        def joules(self):
            self.total += 1.0
            return self.total

    monkeypatch.setattr(worker, "find_meter", Steady)
    request = make_request(
        StoredModel(format_named("onnx"), onnx_model),
        WITH_ENERGY,
        {"test": {"source": "tiny"}},
        SourceContext(tmp_path, cache=tmp_path),
    )
    [answer] = worker._Worker(request, lambda *_: None, CallLimit(print)).measure()
    energy = answer.measurement.latency.energy
    assert energy == EnergyReport.model_validate_json(energy.model_dump_json())
    assert energy.meter == "steady"
    assert "energy_mj" in {metric.name for metric in answer.measurement.metrics}


def test_energy_needs_the_calls_of_latency():
    with pytest.raises(ValidationError, match="`energy` needs `latency`"):
        EvaluateConfig(energy=EnergyConfig())


def test_reports_without_energy_keep_their_digest():
    plain = EvaluateConfig(latency=LATENCY)
    assert evaluation_digest(plain, {}, None) == (
        "1faf9289cc4cbbfc2f270279aa03e554e7ed25bb67d34bb82e28f5fd35702f71"
    )
    assert evaluation_digest(WITH_ENERGY, {}, None) != evaluation_digest(plain, {}, None)
