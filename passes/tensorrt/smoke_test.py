"""One run of an engine on the GPU of this machine."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from compressor.engine.contract import PassContext
from compressor.errors import NumericalError
from compressor.runtimes.tensorrt.manifest import ENGINE, EngineManifest, write_record
from compressor.runtimes.tensorrt.session import EngineSession
from passes.common.graph_samples import load_feeds
from passes.tensorrt.config import Calibration


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
