"""Build manifests, measurements and runs as a phone pipeline leaves them, without any model."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from compressor.artifacts.artifact import Artifact, entries_of
from compressor.artifacts.manifest import Environment, FileEntry, Manifest, Metric, PassRecord
from compressor.artifacts.runs import GateResult
from compressor.evaluation.records import AccuracyReport, LatencyReport, Measurement
from compressor.reports.rows.ladder import LadderInput
from compressor.reports.rows.run import RunReport

SLICES = ("input=text", "input=speech", "language=zh", "language=en", "input×language=speech×zh")
RUNTIMES = {"torch": "torch", "onnx": "ONNX Runtime", "engine": "TensorRT"}
COMMAND = "autoglm-compress run pipeline.yaml"


def count_metric(name: str, value: float, unit: str = "count") -> Metric:
    """Return a metric that is counted exactly; lower is better."""
    return Metric(name=name, value=value, unit=unit, better="lower", samples=1)


def fraction_metric(name: str, value: float, half: float = 0.015, samples: int = 2000) -> Metric:
    """Return an accuracy with an interval of ``half`` on both sides."""
    low, high = value - half, value + half
    unit = {"unit": "fraction", "better": "higher"}
    return Metric(name=name, value=value, samples=samples, low=low, high=high, **unit)


def latency_metric(name: str, value: float, half: float = 0.02) -> Metric:
    """Return a latency in ms with a relative interval of ``half`` on both sides."""
    low, high = value * (1 - half), value * (1 + half)
    unit = {"unit": "ms", "better": "lower"}
    return Metric(name=name, value=value, samples=100, low=low, high=high, **unit)


def model_metrics(top1: float, p50: float, size: int, parameters: int) -> tuple[Metric, ...]:
    """Return everything that is measured of a model: accuracy by slices, then costs."""
    slices = (
        fraction_metric(f"top1[{name}]", top1 - 0.02 * index, 0.03, 500)
        for index, name in enumerate(SLICES)
    )
    throughput = Metric(
        name="throughput", value=1000 / p50, unit="samples/s", better="higher", samples=100
    )
    return (
        fraction_metric("top1", top1),
        *slices,
        latency_metric("latency_p50_ms", p50),
        latency_metric("latency_p90_ms", p50 * 1.1),
        latency_metric("latency_p99_ms", p50 * 1.4),
        throughput,
        count_metric("peak_rss_bytes", 180e6 + 3 * size, "bytes"),
        count_metric("size_bytes", size, "bytes"),
        count_metric("parameters", parameters),
        count_metric("macs", parameters * 11),
    )


def call_times(p50: float, repeats: int = 100) -> tuple[float, ...]:
    """Return milliseconds with a right-skewed spread around ``p50``, equal in every call."""
    return tuple(
        round(p50 * (1 + 0.03 * math.sin(7 * i) + 0.25 * max(0.0, math.sin(2.3 * i)) ** 9), 4)
        for i in range(repeats)
    )


def manifest(step: str = "student", **changes: Any) -> Manifest:
    """Return the manifest of a distilled student; ``changes`` replace fields."""
    values: dict[str, Any] = {
        "id": (step.encode().hex() * 64)[:64],
        "step": step,
        "format": "torch",
        "parents": {},
        "pass_": PassRecord(
            name="distill", version=1, config={"epochs": 3, "temperature": {"start": 5, "end": 1}}
        ),
        "seed": 0,
        "tools": {"torch": "2.13.0", "numpy": "2.3.1"},
        "data": {"train": "ab" * 32},
        "files": {"model/model.safetensors": FileEntry(sha256="cd" * 32, bytes=4_200_000)},
        "reports": {},
        "measured": "ef" * 32,
        "metrics": (),
        "summary": {},
        "environment": Environment(
            platform="Linux-6.12-x86_64",
            cpu="Example CPU",
            cores=2,
            memory_bytes=16_000_000_000,
            python="3.11.7",
            threads=2,
            device="cpu",
        ),
        "created": "2026-01-02T03:04:05+00:00",
        "seconds": 93.4,
        "peak_rss_bytes": 912_000_000,
    }
    return Manifest(**{**values, **changes}).sealed()


def measurement(top1: float = 0.8, p50: float = 2.0) -> Measurement:
    """Return what was measured of a student on 2000 samples."""
    metrics = model_metrics(top1, p50, 4_200_000, 1_050_000)
    accuracy = AccuracyReport(
        data="test",
        samples=2000,
        metrics=metrics[:6],
        slices={"input": {"text": 1000, "speech": 1000}},
        predictions=(1, 2),
        labels=(1, 3),
    )
    latency = LatencyReport(
        runtime="torch 2.13.0",
        batch_size=1,
        threads=2,
        warmup=10,
        metrics=metrics[6:9],
        milliseconds=call_times(p50),
    )
    return Measurement(accuracy=accuracy, latency=latency, metrics=metrics)


def training_history(steps: int = 40) -> list[dict[str, float]]:
    """Return the history of a training: a falling loss and four other values."""
    return [
        {
            "step": 25 * i,
            "loss": 2.3 * math.exp(-i / 12) + 0.1,
            "accuracy": 0.85 - 0.7 * math.exp(-i / 10),
            "learning_rate": 1e-3 * (1 + math.cos(math.pi * i / steps)) / 2,
            "temperature": 5 - 4 * i / steps,
        }
        for i in range(steps)
    ]


def phone_run(root: Path) -> list[LadderInput]:
    """Return source (not measured), teacher, student, its ONNX form, and a pruned teacher."""
    rows = (
        ("source", None, "source", "torch", None, 18_400_000),
        ("teacher", "source", "train", "torch", (0.831, 9.4, 4_600_000), 18_400_000),
        ("student", "teacher", "distill", "torch", (0.802, 4.1, 1_100_000), 4_400_000),
        ("onnx", "student", "export-onnx", "onnx", (0.802, 1.15, 1_100_000), 4_450_000),
        ("pruned", "teacher", "prune", "torch", (0.771, 5.6, 3_000_000), 12_000_000),
    )
    ids: dict[str, str] = {}
    steps = []
    for step, parent, pass_name, model_format, values, size in rows:
        metrics = model_metrics(values[0], values[1], size, values[2]) if values else ()
        parents = {"parent": ids[parent]} if parent else {}
        if step == "student":
            parents["teacher"] = ids["teacher"]
        trained = {"history": training_history(), "notes": ["a choice was made"]}
        reports = {}
        path = root / f"{pass_name}-{step}"
        if values:
            (path / "reports").mkdir(parents=True, exist_ok=True)
            latency = measurement(values[0], values[1]).latency
            assert latency is not None
            (path / "reports/latency.json").write_text(latency.model_dump_json())
            reports = entries_of(path, "reports")
        built = manifest(
            step,
            format=model_format,
            parents=parents,
            metrics=metrics,
            pass_=PassRecord(name=pass_name, version=1, config={}),
            files={"model/weights": FileEntry(sha256="00" * 32, bytes=size)},
            reports=reports,
            summary=trained if pass_name in {"train", "distill"} else {},
        )
        ids[step] = built.id
        steps.append(
            LadderInput(
                step,
                Artifact(path, built),
                cached=step == "source",
                parent=parent,
                runtime=RUNTIMES[model_format],
            )
        )
    return steps


def gate_result(**changes: Any) -> GateResult:
    """Return a failed gate on the accuracy of the ONNX form; ``changes`` replace fields."""
    values: dict[str, Any] = {
        "gate": "top1 min 0.9",
        "step": "onnx",
        "metric": "top1",
        "unit": "fraction",
        "value": 0.802,
        "found": 0.802,
        "low": 0.79,
        "high": 0.81,
        "limit": 0.9,
        "passed": False,
        "reason": "0.802 is below 0.9",
    }
    return GateResult(**{**values, **changes})


def run_report(root: Path, **changes: Any) -> RunReport:
    """Return the report of ``phone_run``; ``changes`` replace fields."""
    values = {"pipeline": "phone", "steps": phone_run(root), "gates": [], "command": COMMAND}
    return RunReport(**{**values, **changes})
