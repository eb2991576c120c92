from math import inf

from compressor.reports.rows.gates import COLUMNS, gate_row, sentence
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


def test_a_gate_reads_as_a_sentence() -> None:
    drop = gate_result(
        gate="top1 max_drop 0.01 against student",
        bound="max_drop",
        reference=0.81,
        found=0.001,
        low=-0.006,
        high=0.008,
        limit=0.01,
        passed=True,
    )
    assert sentence(drop) == (
        "top-1 of onnx may fall 1.00 points against student: fell 0.10 (−0.60 … 0.80), passed"
    )
    rise = drop.model_copy(update={"found": -0.002, "low": -0.008, "high": 0.003})
    assert sentence(rise).endswith("against student: rose 0.20 (fall −0.80 … 0.30), passed")


def test_ratios_and_limits_read_as_sentences() -> None:
    ratio = gate_result(
        gate="size_bytes max_ratio 0.25 against teacher",
        metric="size_bytes",
        bound="max_ratio",
        unit="bytes",
        found=0.17,
        low=0.17,
        high=0.17,
        limit=0.25,
        passed=True,
    )
    assert sentence(ratio) == "size of onnx may be at most ×0.25 of teacher: ×0.17, passed"
    assert sentence(gate_result()) == (
        "top-1 of onnx must be at least 90.0 %: 80.2 % (79.0 % … 81.0 %), failed"
    )


def test_the_sentence_of_an_undecided_gate_states_the_consequence() -> None:
    undecided = gate_result(decided=False, passed=True)
    assert sentence(undecided).endswith("undecided, since the interval holds the limit: passes")


def test_the_sentence_of_a_gate_without_a_measurement_gives_the_reason() -> None:
    missing = gate_result(value=None, found=None, low=None, high=None, reason="onnx has no top1")
    assert sentence(missing) == "top-1 of onnx: onnx has no top1, failed"
