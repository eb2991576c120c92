import pytest

from compressor.analysis.bisect import Bisection, PassLoss
from compressor.analysis.compare import Comparison, Difference, MetricPair
from compressor.analysis.history import PastMetric, PastRun, PastStep
from compressor.analysis.layer_restoration import LayerTrial
from compressor.analysis.layerwise import LayerComparison, LayerDifference
from compressor.analysis.tensors import TensorDifference
from compressor.artifacts.gain_report import Gain
from compressor.reports.console.comparisons import render_bisection, render_comparison
from compressor.reports.console.history import render_history, render_metric_history
from compressor.reports.console.runs import render_gains
from tests.support.reports import count_metric, fraction_metric


def printed(capsys: pytest.CaptureFixture[str]) -> str:
    return " ".join(capsys.readouterr().out.split())


def test_a_comparison_shows_metrics_differences_tensors_and_layers(
    capsys: pytest.CaptureFixture[str],
) -> None:
    pair = MetricPair(
        name="top1",
        unit="fraction",
        better="higher",
        a=0.8,
        b=0.79,
        change=-0.01,
        ratio=0.9875,
        overlap=True,
    )
    tensors = (
        TensorDifference(name="weight", a=(2, 3), b=(2, 3), snr_db=34.25, equal=False),
        TensorDifference(name="bias", a=(2,), b=(2,), snr_db=None, equal=True),
    )
    layer = LayerDifference(layer="fc", order=0, error=1e-4, snr_db=40.0, added=2e-5)
    exact = LayerDifference(layer="stem", order=1, error=0.0, snr_db=None, added=0.0)
    layers = LayerComparison(
        samples=16,
        layers=(layer, exact),
        answers={"logits": 1e-4},
        parts_at="fc",
        only_a=("norm",),
        only_b=(),
    )
    comparison = Comparison(
        a="train-1",
        b="awq-2",
        same_model=False,
        metrics=(pair,),
        differences=(Difference(what="seed", a=0, b=1),),
        tensors=tensors,
        layers=layers,
    )
    render_comparison(comparison)
    output = printed(capsys)
    for text in (
        "the models are different",
        "top1 80.0 % 79.0 % −1.0 pts ×0.988 within noise",
        "seed 0 1",
        "1 of 2 tensors have equal values",
        "weight [2, 3] [2, 3] 34.2 dB",
        "16 samples, 2 common layers; outputs differ from fc on",
        "only in the first model: norm",
        "fc 0 2.00e-05 40.0 dB",
        "stem 1 0 exact",
        "logits 1.00e-04",
    ):
        assert text in output


def test_a_bisection_shows_losses_and_restored_layers(capsys: pytest.CaptureFixture[str]) -> None:
    loss = PassLoss(step="int8", pass_name="qat", parent="a", before=0.8, after=0.7, lost=0.1)
    trial = LayerTrial(restored=("fc1", "fc2"), value=0.79, error=1e-3)
    bisection = Bisection(
        metric="top1", samples=64, passes=(loss,), culprit="int8", trials=(trial,), layer="fc1"
    )
    render_bisection(bisection)
    output = printed(capsys)
    for text in (
        "top1 on 64 samples",
        "int8 qat 80.0 % 70.0 % −10.0 pts",
        "2: fc1 … fc2 79.0 % 1.00e-03",
        "largest loss in layer fc1",
    ):
        assert text in output
    render_bisection(bisection.model_copy(update={"layer": None, "why_not": "widths differ"}))
    assert "no single layer found: widths differ" in printed(capsys)


def test_gains_show_why_a_step_is_not_faster(capsys: pytest.CaptureFixture[str]) -> None:
    gain = Gain(
        step="int8",
        pass_name="qat",
        against="float",
        runtime="ONNX Runtime",
        size_ratio=0.25,
        parameters_ratio=None,
        macs_ratio=None,
        low_precision_weights=0.5,
        low_precision_macs=None,
        speedup=None,
        speedup_low=None,
        speedup_high=None,
        why_not=("no integer kernels",),
    )
    render_gains([gain])
    output = printed(capsys)
    assert "int8 float ONNX Runtime ×0.250 – 50.0 % – – –" in output
    assert "int8 is not significantly faster than float: no integer kernels" in output


def test_the_history_shows_runs_and_follows_a_metric(capsys: pytest.CaptureFixture[str]) -> None:
    metrics = {"top1": fraction_metric("top1", 0.8), "size_bytes": count_metric("x", 4e6, "bytes")}
    recorded = {
        name: [getattr(metric, field) for field in PastMetric._fields]
        for name, metric in metrics.items()
    }
    run = PastRun(
        run="phone-1",
        pipeline="phone",
        when="2026-01-02T03:04:05+00:00",
        command="run",
        passed=2,
        failed=1,
        checked=True,
        steps=(PastStep("student", "ab", recorded),),
    )
    render_history([run])
    output = printed(capsys)
    assert "phone-1, 2 of 3 gates passed" in output
    assert "student 80.0 % – 4.00 MB" in output
    render_metric_history([run], "top1")
    assert "phone-1 student 80.0 % 78.5–81.5 %" in printed(capsys)
