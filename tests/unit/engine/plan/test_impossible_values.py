"""Values that have the right type and cannot be meant are refused before any work."""

from __future__ import annotations

from pathlib import Path

import pytest

from compressor.engine.plan.pipeline import load_pipeline
from compressor.engine.plan.planner import check_pipeline
from compressor.errors import ConfigError
from tests.support.cli import cli


def problems_of(file: Path, overrides: list[str]) -> str:
    """Return the problems that checking a pipeline file reports."""
    from compressor.data.contract import SourceContext

    with pytest.raises(ConfigError) as error:
        check_pipeline(load_pipeline(file, overrides), SourceContext(file.parent))
    return str(error.value)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("name=" + "n" * 300, "at most 100 characters"),
        ("passes[0].name=" + "n" * 300, "at most 100 characters"),
        ("passes[0].sleep=.nan", "finite number"),
        ("passes[0].sleep=.inf", "finite number"),
        ("evaluate.latency.batch_size=1000000000", "less than or equal to 65536"),
        ("evaluate.latency.repeats=1000000000", "less than or equal to 1000000"),
        ("evaluate.latency.threads=100000", "less than or equal to 1024"),
        ("gates[0].against=second", "the gate compares 'second' with itself"),
        ("gates[0].max_drop=-.inf", "finite number"),
        ("gates[0].max=-1", "-1 cannot be meant: values of size_bytes are at least 0"),
        ("gates[0].max_drop=-1e300", "-1e+300 cannot be meant"),
        ("gates[0].max_ratio=0", "no ratio is at most 0"),
        ("gates[0]={metric: size_bytes, min: 2, max: 1}", "no value is at least 2 and at most 1"),
        (
            "gates[1]={metric: size_bytes, max_ratio: 2, against: first}",
            "the gate is the same as gates[0]",
        ),
    ],
)
def test_a_value_that_cannot_be_meant_is_refused(
    override: str, message: str, toy_pipeline: Path
) -> None:
    toy_pipeline.write_text(
        toy_pipeline.read_text()
        + "evaluate: {latency: {batch_size: 1, data: samples}}\n"
        + "data: {samples: {source: arrays, path: samples.npz}}\n"
        + "gates:\n  - {metric: size_bytes, max_ratio: 2, against: first}\n"
        + "  - {metric: size_bytes, max: 100000000}\n"
    )
    import numpy as np

    np.savez(toy_pipeline.with_name("samples.npz"), x=np.zeros((4, 4), np.float32))
    assert message in problems_of(toy_pipeline, [override])


def test_limits_of_fractions_in_percent_are_refused(toy_pipeline: Path) -> None:
    text = (
        "evaluate: {accuracy: {data: d, metrics: [top1]}}\n"
        "gates:\n  - {metric: top1, min: 90}\n"
        "  - {metric: top1, max_drop: 1.5, against: first}\n"
        "  - {metric: top1, max_drop: 0.01, against: first}\n"
    )
    toy_pipeline.write_text(toy_pipeline.read_text() + text)
    problems = problems_of(toy_pipeline, [])
    assert "gates[0].min: 90 cannot be meant: values of top1 are 0 to 1" in problems
    assert "gates[1].max_drop: 1.5 cannot be meant" in problems
    assert "write 1 % as 0.01" in problems
    assert "gates[2]" not in problems


def test_a_metric_that_is_named_twice_is_refused(toy_pipeline: Path) -> None:
    text = "evaluate: {accuracy: {data: d, metrics: [top1, top1]}}\n"
    toy_pipeline.write_text(toy_pipeline.read_text() + text)
    refused = cli("validate", toy_pipeline)
    assert refused.returncode == 2
    assert "top1: named more than once" in refused.stderr
