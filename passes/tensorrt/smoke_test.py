"""Runs during the build: the graph against its parent on samples, and the engine on a GPU.

Shapes: N samples, V values of one output.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

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
from passes.tensorrt.config import Calibration

Array = np.ndarray[Any, Any]


def load_feeds(
    calibration: Calibration, inputs: Sequence[InputSpec], context: PassContext
) -> list[Batch]:
    """Return batches of samples for all inputs of a graph.

    Raises:
        DataError: the data set is empty, or does not fit the graph.
    """
    dataset = context.data(calibration.data)
    if len(dataset) == 0:
        raise DataError(f"data set {calibration.data!r} is empty")
    samples = Samples(
        dataset,
        count=calibration.num_samples,
        batch_size=calibration.batch_size,
        seed=calibration.seed,
    )
    caches = [spec for spec in inputs if spec.name.startswith(PAST_PREFIX)]
    computed = {spec.name for spec in caches} | ({ATTENTION_MASK} if caches else set())
    from_data = [spec for spec in inputs if spec.name not in computed]
    return [
        _add_masked_past(match_inputs(batch, from_data), caches)
        for batch in samples.batches("samples")
    ]


def _add_masked_past(feeds: Batch, caches: Sequence[InputSpec]) -> Batch:
    """Add a cache of one masked position, so that a decoder's keys and values are not empty."""
    if not caches:
        return feeds
    count, tokens = feeds[INPUT_IDS].shape
    mask = np.ones((count, tokens + 1), dtype=np.int64)
    mask[:, 0] = 0
    past = {
        spec.name: np.zeros(
            (count, *(size if isinstance(size, int) else 1 for size in spec.shape[1:])),
            dtype=spec.dtype,
        )
        for spec in caches
    }
    return {**feeds, ATTENTION_MASK: mask, **past}


def compare_with_parent(
    calibration: Calibration, parent: Path, out: Path, context: PassContext
) -> dict[str, float]:
    """Compare the converted graph with its parent in ONNX Runtime.

    Returns:
        Largest absolute difference of any value, and smallest cosine of any sample's output.

    Raises:
        NumericalError: the converted graph computes NaN or infinity.
    """
    max_abs, cosine = 0.0, 1.0
    with (
        open_session("onnx", parent, threads=context.threads) as reference,
        open_session("onnx", out, threads=context.threads) as converted,
    ):
        for feeds in load_feeds(calibration, reference.inputs, context):
            expected, actual = reference.run(feeds), converted.run(feeds)
            for name, values in expected.items():
                expected_NV, actual_NV = _flatten(values), _flatten(actual[name])
                if not np.isfinite(actual_NV).all():
                    raise NumericalError(f"the converted graph computes NaN or infinity in {name}")
                difference = float(np.abs(expected_NV - actual_NV).max(initial=0.0))
                max_abs = max(max_abs, difference)
                cosine = min(cosine, _smallest_cosine(expected_NV, actual_NV))
    return {"max_abs": max_abs, "cosine": cosine}


def _flatten(values: Array) -> Array:
    """Return the values of each sample in a row, float64 [N, V]."""
    return values.reshape(len(values), -1).astype(np.float64)


def _smallest_cosine(a_NV: Array, b_NV: Array) -> float:
    """Return the smallest cosine over the samples that are zero in neither array; 1 if none."""
    norms_N = np.linalg.norm(a_NV, axis=1) * np.linalg.norm(b_NV, axis=1)
    nonzero_N = norms_N > 0
    cosines_N = (a_NV * b_NV).sum(axis=1)[nonzero_N] / norms_N[nonzero_N]
    return float(cosines_N.min(initial=1.0))


def run_engine(
    calibration: Calibration, manifest: EngineManifest, out: Path, context: PassContext
) -> None:
    """Run the engine for this machine's GPU on one sample, and record that in engine.json.

    Raises:
        GpuError: this machine has no GPU, or none of the engines is for it.
        NumericalError: the engine computes NaN or infinity.
    """
    single = calibration.model_copy(update={"num_samples": 1, "batch_size": 1})
    with EngineSession(out) as session:
        outputs = session.run(load_feeds(single, session.inputs, context)[0])
        target, device = session.target, session.runtime
    if wrong := [name for name, values in outputs.items() if not np.isfinite(values).all()]:
        raise NumericalError(f"the engine computes NaN or infinity in {', '.join(wrong)}")
    executed = {"executed": True, "device": device}
    engines = tuple(
        engine.model_copy(update=executed) if engine.target == target else engine
        for engine in manifest.engines
    )
    write_record(manifest.model_copy(update={"engines": engines}), out / ENGINE)
