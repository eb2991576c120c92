from math import inf

from compressor.reports.rows.gates import COLUMNS, gate_row
from tests.support.reports import gate_result


def test_a_minimum_is_compared_with_the_value() -> None:
    row = gate_row(gate_result(basis="2000 samples"))
    assert (row.measured, row.compared, row.limit) == ("80.2 %", "80.2 %", "≥ 90.0 %")
    assert (row.interval, row.basis) == ("79.0 % … 81.0 %", "2000 samples")
    assert len(row.cells) == len(COLUMNS)


def test_a_drop_of_accuracy_is_shown_in_points() -> None:
    drop = gate_result(
        gate="top1 max_drop 0.01 against student",
        reference=0.81,
        found=0.008,
        low=-0.002,
        high=0.018,
        limit=0.01,
        decided=False,
    )
    row = gate_row(drop)
    assert row.measured == "80.2 % against 81.0 %"
    assert (row.compared, row.limit) == ("0.80 pts", "≤ 1.00 pts")
    assert row.interval == "−0.20 pts … 1.80 pts"
    assert row.verdict == "undecided, fails"


def test_a_ratio_may_be_infinite() -> None:
    ratio = gate_result(gate="macs max_ratio 1 against a", metric="macs", unit="count", found=inf)
    assert gate_row(ratio).compared == "∞"
    assert gate_row(ratio.model_copy(update={"found": 1.25})).compared == "×1.25"


def test_a_metric_that_is_missing_shows_the_reason() -> None:
    missing = gate_result(value=None, found=None, low=None, high=None, reason="onnx has no top1")
    row = gate_row(missing)
    assert (row.measured, row.compared, row.interval) == ("–", "onnx has no top1", "–")


def test_a_slice_s_name_does_not_hide_the_rule() -> None:
    metric = "top1[input=a max_ratio b]"
    row = gate_row(gate_result(gate=f"{metric} min 0.9", metric=metric))
    assert row.limit == "≥ 90.0 %"
