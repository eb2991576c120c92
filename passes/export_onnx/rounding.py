"""Detect graphs that deviate because ONNX Runtime rounds otherwise than torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime

from compressor.data.contract import Batch
from compressor.errors import ParityError
from compressor.graphs.files import MODEL
from compressor.runtimes.onnxruntime.inference import CPU, run_limited, session_options
from compressor.runtimes.session import Session
from passes.export_onnx.parity import Tolerance, cosines


def explained(
    error: ParityError, folder: Path, reference: Session, batches: Sequence[Batch]
) -> ParityError:
    """Return the error of a quantized graph with a remedy that fits its cause.

    Without its optimizations, ONNX Runtime computes the graph as written. Its integer kernels round
    biases to int32 and results once, so values near the middle of two integers go the other way.

    Args:
        error: limits were exceeded.
        folder: folder of the graph.
        reference: the parent.
        batches: the compared samples.
    """
    if not _computes_the_same(folder, reference, batches):
        return error
    return ParityError(
        f"{error.what}\n    as written, without the optimizations of ONNX Runtime, the graph "
        "computes what torch does",
        remedy="the integer kernels of ONNX Runtime round values to other neighbours, and this "
        "model amplifies it: train it further, or with `fine_tuning` in `qat`; to take the graph "
        "as it is, lower `parity.cosine` and `parity.agreement`",
    )


def _computes_the_same(folder: Path, reference: Session, batches: Sequence[Batch]) -> bool:
    """Return True if the outputs of the graph as written are those of the parent.

    The median of the samples counts: of a model that amplifies roundings, single ones differ.
    """
    graph = onnxruntime.InferenceSession(
        str(folder / MODEL), session_options(optimize=False), providers=CPU
    )
    inputs = [value.name for value in graph.get_inputs()]
    outputs = [value.name for value in graph.get_outputs()]
    _, limit, _ = Tolerance.FLOAT.value
    cosines_N: list[float] = []
    for batch in batches:
        feeds = {name: batch[name] for name in inputs}
        values = run_limited(graph, outputs, feeds, folder / MODEL)
        actual = dict(zip(outputs, values, strict=True))
        for name, expected in reference.run(batch).items():
            rows = (
                array.reshape(len(array), -1).astype("f8") for array in (expected, actual[name])
            )
            cosines_N.extend(cosines(*rows).tolist())
    return float(np.median(cosines_N)) >= limit
