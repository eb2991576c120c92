"""Manifests and measurements as a phone pipeline would leave them; no model behind them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from compressor.artifacts.manifest import Environment, FileEntry, Manifest, Metric, PassRecord
from compressor.artifacts.store import Artifact
from compressor.evaluation.records import AccuracyReport, LatencyReport, Measurement
from compressor.reports.rows.ladder import LadderInput

SLICES = ("input=text", "input=speech", "language=zh", "language=en", "input×language=speech×zh")


def counted(name: str, value: float, unit: str = "count") -> Metric:
    return Metric(name=name, value=value, unit=unit, better="lower", samples=1)


def share(name: str, value: float, half: float = 0.015, samples: int = 2000) -> Metric:
    return Metric(
        name=name,
        value=value,
        unit="fraction",
        better="higher",
        samples=samples,
        low=value - half,
        high=value + half,
    )


def timed(name: str, value: float, half: float = 0.02) -> Metric:
    low, high = value * (1 - half), value * (1 + half)
    return Metric(
        name=name, value=value, unit="ms", better="lower", samples=100, low=low, high=high
    )


def metrics(top1: float, p50: float, size: int, parameters: int) -> tuple[Metric, ...]:
    sliced = (share(f"top1[{one}]", top1 - 0.02 * at, 0.03, 500) for at, one in enumerate(SLICES))
    throughput = Metric(
        name="throughput", value=1000 / p50, unit="samples/s", better="higher", samples=100
    )
    return (
        share("top1", top1),
        *sliced,
        timed("latency_p50_ms", p50),
        timed("latency_p90_ms", p50 * 1.1),
        timed("latency_p99_ms", p50 * 1.4),
        throughput,
        counted("peak_rss_bytes", 180e6 + 3 * size, "bytes"),
        counted("size_bytes", size, "bytes"),
        counted("parameters", parameters),
        counted("macs", parameters * 11),
    )


def milliseconds(p50: float, repeats: int = 100) -> tuple[float, ...]:
    """A right-skewed spread around ``p50``, the same each time."""
    return tuple(
        round(p50 * (1 + 0.03 * math.sin(7 * i) + 0.25 * max(0.0, math.sin(2.3 * i)) ** 9), 4)
        for i in range(repeats)
    )


def manifest(step: str = "student", **changes: Any) -> Manifest:
    values: dict[str, Any] = {
        "id": (step.encode().hex() * 64)[:64],
        "step": step,
        "kind": "torch",
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
    found = metrics(top1, p50, 4_200_000, 1_050_000)
    accuracy = AccuracyReport(
        data="test",
        samples=2000,
        metrics=found[:6],
        slices={"input": {"text": 1000, "speech": 1000}},
        predictions=(1, 2),
        labels=(1, 3),
    )
    latency = LatencyReport(
        runtime="torch 2.13.0",
        batch_size=1,
        threads=2,
        warmup=10,
        metrics=found[6:9],
        milliseconds=milliseconds(p50),
    )
    return Measurement(accuracy=accuracy, latency=latency, metrics=found)


def history(steps: int = 40) -> list[dict[str, float]]:
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
    """Source (unmeasured), teacher, student, its ONNX form and a pruned branch of the teacher."""
    rows = (
        ("source", None, "source", "torch", None, 18_400_000),
        ("teacher", "source", "train", "torch", (0.831, 9.4, 4_600_000), 18_400_000),
        ("student", "teacher", "distill", "torch", (0.802, 4.1, 1_100_000), 4_400_000),
        ("onnx", "student", "export-onnx", "onnx", (0.802, 1.15, 1_100_000), 4_450_000),
        ("pruned", "teacher", "prune", "torch", (0.771, 5.6, 3_000_000), 12_000_000),
    )
    ids: dict[str, str] = {}
    steps = []
    for step, parent, pass_name, kind, figures, size in rows:
        found = metrics(figures[0], figures[1], size, figures[2]) if figures else ()
        parents = {"parent": ids[parent]} if parent else {}
        if step == "student":
            parents["teacher"] = ids["teacher"]
        one = manifest(
            step,
            kind=kind,
            parents=parents,
            metrics=found,
            pass_=PassRecord(name=pass_name, version=1, config={}),
            files={"model/weights": FileEntry(sha256="00" * 32, bytes=size)},
            summary={"history": history(), "notes": ["a choice was made"]}
            if pass_name in {"train", "distill"}
            else {},
        )
        ids[step] = one.id
        path = root / f"{pass_name}-{one.id[:12]}"
        if figures:
            (path / "reports").mkdir(parents=True, exist_ok=True)
            timing = measurement(figures[0], figures[1]).latency
            assert timing is not None
            (path / "reports/latency.json").write_text(timing.model_dump_json())
        steps.append(LadderInput(step, Artifact(path, one), cached=step == "source", parent=parent))
    return steps
