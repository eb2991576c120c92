"""Tests of metrics of other packages: what they may return, and what names them."""

from functools import cache

import numpy as np
import pytest

from compressor.config import discovery
from compressor.errors import PassError, UsageError
from compressor.evaluation import metrics
from compressor.evaluation.measure import evaluation_digest
from compressor.evaluation.metric_plugin import MetricPlugin
from compressor.evaluation.records import AccuracyConfig, EvaluateConfig


class Second(MetricPlugin):
    """Number of classes."""

    name, unit, result = "second", "fraction", None

    def score(self, outputs, targets):
        if self.result is None:
            raise ValueError("no result")
        return self.result


@pytest.fixture
def plugin(monkeypatch):
    """Install the metric `second`."""
    second = Second()
    monkeypatch.setattr(
        discovery, "names", lambda group: ["second"] if group == discovery.METRICS else []
    )
    monkeypatch.setattr(discovery, "load", cache(lambda group, name: second))
    metrics._plugin_metric.cache_clear()
    yield second
    metrics._plugin_metric.cache_clear()


def score(result, plugin):
    plugin.result = result
    return metrics.metric_named("second:x").score(np.zeros((2, 3)), np.zeros(2, np.int64))


def test_a_metric_of_another_package_is_a_metric(plugin):
    assert metrics.is_metric("second")
    assert metrics.is_metric("second:scores")
    assert "second" in metrics.known_metrics()
    assert metrics.reference_metrics(["second"]) == ()
    assert score(np.array([True, False]), plugin).tolist() == [1.0, 0.0]


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (None, "the metric 'second' failed: ValueError: no result"),
        (np.zeros(3), r"returned the shape \[3\] for 2 outputs"),
        (np.array([0.0, np.nan]), "returned NaN for 2 outputs"),
        (np.array([0.0, 2.0]), "values beyond 0 to 1"),
    ],
)
def test_what_a_metric_returns_is_checked(plugin, result, message):
    with pytest.raises(PassError, match=message):
        score(result, plugin)


def test_a_metric_has_a_scale_that_can_be_scored(plugin, monkeypatch):
    monkeypatch.setattr(Second, "scale", "transcript")
    with pytest.raises(UsageError, match="is no MetricPlugin of the scale classes or values"):
        metrics.metric_named("second")


def test_the_code_of_a_metric_is_part_of_what_is_measured(plugin, monkeypatch):
    config = EvaluateConfig(accuracy=AccuracyConfig(data="d", metrics=("second:x",)))
    before = evaluation_digest(config, {}, None)
    monkeypatch.setattr(metrics, "_code_digest", lambda plugin: "changed")
    assert evaluation_digest(config, {}, None) != before
