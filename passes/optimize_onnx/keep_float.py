"""Choice of the products that stay in float, so that a metric stays within its limit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from shutil import rmtree
from typing import Any

import numpy as np
from onnxscript import ir

from compressor.data.contract import Batch
from compressor.engine.contract import PassContext
from compressor.errors import RequirementError
from compressor.evaluation.accuracy import measure_accuracy
from compressor.evaluation.metrics import metric_named
from compressor.evaluation.records import AccuracyConfig
from compressor.graphs.saving import exceeds_protobuf, save_model
from compressor.graphs.values import Array
from compressor.runtimes.formats import open_session
from compressor.runtimes.onnxruntime.observation import open_graph, run_graph
from passes.optimize_onnx.config import KeepFloat
from passes.optimize_onnx.integers import IntegerGraphs


@dataclass(frozen=True, slots=True)
class FloatProducts:
    """Products that are kept in float, and the metrics that led to them."""

    names: tuple[str, ...]
    """The most sensitive first."""
    errors: dict[str, float]
    """Relative error of the outputs if a product alone is integer."""
    metrics: tuple[float, ...]
    """Metric with 0, 1, 2, … of the products in float."""
    float_metric: float

    def summary(self) -> dict[str, Any]:
        """Return ranking and metrics as JSON values for the manifest."""
        ranked = sorted(self.errors, key=lambda name: -self.errors[name])
        ranking = [
            {"product": name, "error": self.errors[name], "kept_float": name in self.names}
            for name in ranked
        ]
        metrics = {"float": self.float_metric, "by_products_kept": list(self.metrics)}
        return {"sensitivity": ranking, "keep_float": metrics}


def choose_float_products(
    config: KeepFloat,
    graphs: IntegerGraphs,
    names: Sequence[str],
    parent: Path,
    context: PassContext,
) -> FloatProducts:
    """Keep products in float, the most sensitive first, until the metric reaches its limit.

    Raises:
        RequirementError: the limit is not reached with the products that the config allows.
    """
    limit = _Limit(config, parent, context)
    metrics = [limit.metric(graphs.build(names).model)]
    errors: dict[str, float] = {}
    kept: list[str] = []
    if not limit.holds(metrics[0]):
        errors = _rank(config, graphs, names, context)
        ranked = sorted(errors, key=lambda name: -errors[name])
        most = min(config.max_products, len(ranked) - 1)
        while not limit.holds(metrics[-1]) and len(kept) < most:
            kept.append(ranked[len(kept)])
            integer = [name for name in names if name not in kept]
            metrics.append(limit.metric(graphs.build(integer).model))
    if not limit.holds(metrics[-1]):
        raise RequirementError(
            f"`keep_float` cannot meet its limit: {config.metric} is {metrics[-1]:.4g} with "
            f"{len(kept)} products in float and {metrics[0]:.4g} with none; the float graph has "
            f"{limit.float_metric:.4g}, and `max_drop` is {config.max_drop:g}",
            remedy="raise `max_products` or `max_drop`, try another observer, or set "
            "`precision: fp16`",
        )
    return FloatProducts(tuple(kept), errors, tuple(metrics), limit.float_metric)


class _Limit:
    """The metric of the float graph, and whether that of another graph is close enough."""

    def __init__(self, config: KeepFloat, parent: Path, context: PassContext) -> None:
        self._config, self._parent, self._context = config, parent, context
        self._better = metric_named(config.metric).better
        self.float_metric = self._measure(parent)

    def holds(self, metric: float) -> bool:
        drop = self.float_metric - metric
        return (drop if self._better == "higher" else -drop) <= self._config.max_drop

    def metric(self, graph: ir.Model) -> float:
        folder = self._context.work / "keep_float"
        rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        save_model(graph, folder, external=exceeds_protobuf(graph))
        return self._measure(folder)

    def _measure(self, folder: Path) -> float:
        threads = self._context.threads
        with (
            open_session("onnx", self._parent, threads=threads) as reference,
            open_session("onnx", folder, threads=threads) as session,
        ):
            request = AccuracyConfig(
                data=self._config.data,
                metrics=(self._config.metric,),
                bootstrap=0,
            )
            report = measure_accuracy(
                session,
                self._context.data(self._config.data),
                request,
                lambda what, done, total: self._context.progress(what, done, total, {}),
                reference,
            )
        return next(each.value for each in report.metrics if each.name == self._config.metric)


def _rank(
    config: KeepFloat, graphs: IntegerGraphs, names: Sequence[str], context: PassContext
) -> dict[str, float]:
    """Return the relative error of the float outputs with one product integer at a time."""
    calibration = graphs.config.calibration
    assert calibration is not None  # noqa: S101 - INT8 requires it
    share = min(1.0, config.num_samples / calibration.num_samples)
    feeds = graphs.feeds[: max(1, round(share * len(graphs.feeds)))]
    expected = _outputs(graphs.graph, feeds, graphs.threads)
    errors = {}
    for number, name in enumerate(names, start=1):
        actual = _outputs(graphs.build([name]).model, feeds, graphs.threads)
        errors[name] = float(
            np.mean([_error(*pair) for pair in zip(expected, actual, strict=True)])
        )
        context.progress("rank products", number, len(names), {})
    return errors


def _outputs(graph: ir.Model, feeds: Sequence[Batch], threads: int) -> list[Array]:
    session = open_graph(graph, threads)
    return [values for batch in feeds for values in run_graph(session, None, batch)]


def _error(expected: Array, actual: Array) -> float:
    if expected.dtype.kind != "f" or expected.shape != actual.shape:
        return float(expected.shape != actual.shape or not np.array_equal(expected, actual))
    expected, actual = expected.astype(np.float64), actual.astype(np.float64)
    length = float(np.linalg.norm(expected))
    return float(np.linalg.norm(actual - expected)) / (length or 1.0)
