import pytest

from compressor.artifacts.manifest import Metric
from compressor.reports.rows import formatting
from tests.support.reports import fraction_metric


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (0.8126, "fraction", "81.3 %"),
        (-0.0001, "fraction", "0.0 %"),
        (0.41234, "ms", "0.412 ms"),
        (12.345, "ms", "12.3 ms"),
        (1234.5, "ms", "1.23 s"),
        (999, "bytes", "999 B"),
        (4_200_000, "bytes", "4.20 MB"),
        (999_999, "bytes", "1.00 MB"),
        (0, "bytes", "0 B"),
        (1234, "count", "1234"),
        (8_912_896_000, "count", "8.91 G"),
        (93.4, "s", "93.4 s"),
        (125, "s", "2 min 05 s"),
        (4320, "s", "1 h 12 min"),
        (869.6, "samples/s", "870 /s"),
        (1.2345, "nats", "1.23 nats"),
        (0, "nats", "0 nats"),
        (9.999, "ms", "10.0 ms"),
    ],
)
def test_a_number_has_the_notation_of_its_unit(value: float, unit: str, text: str) -> None:
    assert formatting.number(value, unit) == text


def test_a_metric_that_was_not_measured_is_a_dash() -> None:
    assert formatting.metric(None) == "–"
    assert formatting.interval(None) == ""


def test_an_interval_names_its_unit_once() -> None:
    assert formatting.interval(fraction_metric("top1", 0.8, 0.01)) == "79.0–81.0 %"


def test_an_interval_over_two_units_names_both() -> None:
    metric = fraction_metric("x", 1.0).model_copy(
        update={"unit": "ms", "low": 900.0, "high": 1100.0}
    )
    assert formatting.interval(metric) == "900 ms – 1.10 s"


def test_a_change_has_its_sign_and_fractions_change_by_points() -> None:
    assert formatting.difference(-0.012, "fraction") == "−1.2 pts"
    assert formatting.difference(0.012, "fraction") == "+1.2 pts"
    assert formatting.difference(-1.5, "ms") == "−1.50 ms"
    assert formatting.ratio(0.25) == "×0.250"
    assert formatting.ratio(None) == "–"


def test_a_tick_has_no_trailing_zeros() -> None:
    assert formatting.tick(2.0, "ms") == "2 ms"
    assert formatting.tick(0.825, "fraction") == "82.5 %"
    assert formatting.tick(20_000_000, "bytes") == "20 MB"


def test_a_slice_is_named_without_its_signs() -> None:
    assert formatting.slice_name("input=speech") == "input speech"
    assert formatting.slice_name("input×language=speech×zh") == "input speech · language zh"
    assert formatting.slice_name("size=2×3") == "size 2×3"
    assert formatting.slice_name("all") == "all"


def test_a_bare_number_has_no_unit() -> None:
    perplexity = Metric(
        name="perplexity", value=12.34, unit="", better="lower", samples=9, low=11.0, high=13.0
    )
    assert formatting.metric(perplexity) == "12.3"
    assert formatting.interval(perplexity) == "11.0 – 13.0"
    assert formatting.difference(-0.5, "") == "−0.500"
