"""What is run while building: the samples, the graph against its parent, and the engine, where there is a GPU.

Shapes: N samples, V values of one output.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from calibration.samples import Samples
from compressor.data.contract import Batch
from compressor.engine.contract import PassContext
from compressor.errors import DataError, NumericalError
from compressor.graphs.decoder.interface import ATTENTION_MASK, INPUT_IDS, PAST_PREFIX
from compressor.models.capabilities.signature import InputSpec
from compressor.runtimes.formats import open_session
from compressor.runtimes.session import match_inputs
from compressor.runtimes.tensorrt.manifest import ENGINE, EngineManifest, write_record
from compressor.runtimes.tensorrt.session import EngineSession

if TYPE_CHECKING:
    from passes.tensorrt.step import CalibrationSamples

Array = np.ndarray[Any, Any]


def batches_of(
    samples: CalibrationSamples, inputs: Sequence[InputSpec], context: PassContext
) -> list[Batch]:
    """Feeds of a graph.

    Raises:
        DataError: the set is empty, or does not fit the graph.
    """
    dataset = context.data(samples.data)
    if len(dataset) == 0:
        raise DataError(f"the set {samples.data!r} is empty: there is nothing to look at")
    some = Samples(
        dataset, count=samples.num_samples, batch_size=samples.batch_size, seed=samples.seed
    )
    caches = [spec for spec in inputs if spec.name.startswith(PAST_PREFIX)]
    told = [spec for spec in inputs if spec not in caches and (not caches or spec.name != ATTENTION_MASK)]
    return [_behind_nothing(match_inputs(batch, told), caches) for batch in some.batches("samples")]


def _behind_nothing(feeds: Batch, caches: Sequence[InputSpec]) -> Batch:
    """A decoder is given whole windows behind one place that does not count: keys and values that have a size."""
    if not caches:
        return feeds
    count, tokens = feeds[INPUT_IDS].shape
    mask = np.ones((count, tokens + 1), dtype=np.int64)
    mask[:, 0] = 0
    before = {
        spec.name: np.zeros(
            (count, *(size if isinstance(size, int) else 1 for size in spec.shape[1:])),
            dtype=spec.dtype,
        )
        for spec in caches
    }
    return {**feeds, ATTENTION_MASK: mask, **before}


def against_parent(
    samples: CalibrationSamples, parent: Path, out: Path, context: PassContext
) -> dict[str, float]:
    """How far the graph that is built is from its parent, both in ONNX Runtime: largest |Δ|, smallest cosine of any sample.

    Raises:
        NumericalError: it answers with NaN or infinity.
    """
    largest, cosine = 0.0, 1.0
    with (
        open_session("onnx", parent, threads=context.threads) as before,
        open_session("onnx", out, threads=context.threads) as after,
    ):
        for feeds in batches_of(samples, before.inputs, context):
            wanted, got = before.run(feeds), after.run(feeds)
            for name, values in wanted.items():
                a_NV, b_NV = (
                    one.reshape(len(one), -1).astype(np.float64) for one in (values, got[name])
                )
                if not np.isfinite(b_NV).all():
                    raise NumericalError(
                        f"the graph that is to be built answers with NaN or infinity in {name}"
                    )
                largest = max(largest, float(np.abs(a_NV - b_NV).max(initial=0.0)))
                cosine = min(cosine, _smallest_cosine(a_NV, b_NV))
    return {"max_abs": largest, "cosine": cosine}


def _smallest_cosine(a_NV: Array, b_NV: Array) -> float:
    """Of the samples that have a direction in both."""
    lengths_N = np.linalg.norm(a_NV, axis=1) * np.linalg.norm(b_NV, axis=1)
    directed = lengths_N > 0
    return float(((a_NV * b_NV).sum(axis=1)[directed] / lengths_N[directed]).min(initial=1.0))


def executed(
    samples: CalibrationSamples | None, manifest: EngineManifest, out: Path, context: PassContext
) -> bool:
    """Run the engine for this machine's GPU once, and have engine.json say so; without samples it is not tried.

    Raises:
        GpuError: there is no GPU, or none of the engines is for it.
        NumericalError: it answers with NaN or infinity.
    """
    if samples is None:
        return False
    with EngineSession(out) as session:
        single = samples.model_copy(update={"num_samples": 1, "batch_size": 1})
        answers = session.run(batches_of(single, session.inputs, context)[0])
        target, device = session.target, session.runtime
    if wrong := [name for name, values in answers.items() if not np.isfinite(values).all()]:
        raise NumericalError(f"the engine answers with NaN or infinity in {', '.join(wrong)}")
    ran = tuple(
        one.model_copy(update={"executed": True, "device": device}) if one.target == target else one
        for one in manifest.engines
    )
    write_record(manifest.model_copy(update={"engines": ran}), out / ENGINE)
    return True
