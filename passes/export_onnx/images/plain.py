"""Export of a vision-language class as a whole, without a cache, with images of one shape."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from compressor.data.contract import Batch
from compressor.engine.contract import PassContext, PassOutput
from compressor.errors import ParityError, PassError
from compressor.graphs.decoder.interface import INPUT_IDS
from compressor.models.capabilities.signature import InputSpec
from compressor.models.checkpoint.description import ModelDescription
from compressor.models.families.transformers.images import without_padding
from passes.export_onnx.config import ExportOnnxConfig


def export_with_images(
    config: ExportOnnxConfig,
    model: ModelDescription,
    windows: Sequence[Batch],
    out: Path,
    context: PassContext,
) -> PassOutput | None:
    """Trace tokens and images to logits in one graph, and compare it with torch.

    Args:
        config: the pass's.
        model: the parent.
        windows: some samples of the parity set.
        out: an empty folder.
        context: of the pass.

    Returns:
        None if the samples have no images, or arrays of different shapes, or if torch cannot trace
        the class; notes say why.

    Raises:
        ParityError: ONNX Runtime does not compute what torch does.
    """
    from passes.export_onnx.traced_run import export_traced

    has_images = any(len(window) > 1 for window in windows)
    inputs = _graph_inputs(config, model, context) if has_images else None
    if inputs is None:
        return None
    try:
        output = export_traced(config, inputs, model, out, context)
    except ParityError:
        raise
    except PassError as error:
        context.note(f"the class cannot be exported as a whole either: {error.what}")
        return None
    shapes = {spec.name: list(spec.shape[1:]) for spec in inputs if "tokens" not in spec.shape}
    context.note(
        "each sample has images of the shapes "
        + ", ".join(f"{name} {shape}" for name, shape in shapes.items())
    )
    return PassOutput({**output.summary, "images": shapes})


def _graph_inputs(
    config: ExportOnnxConfig, model: ModelDescription, context: PassContext
) -> tuple[InputSpec, ...] | None:
    """Return the inputs with the shapes of the samples; None, with a note, if they differ."""
    dataset = context.data(config.parity.data)
    arrays = dataset.batch(np.arange(len(dataset))[:_SAMPLES])
    inputs = []
    for spec in model.signature.inputs:
        if spec.name not in arrays:
            continue
        array = arrays[spec.name]
        if array.shape == arrays[INPUT_IDS].shape:
            inputs.append(replace(spec, shape=("batch", "tokens"), optional=False))
            continue
        if any(without_padding(sample).shape != array.shape[1:] for sample in array):
            context.note(f"samples have {spec.name} of different shapes, or no images")
            return None
        inputs.append(replace(spec, shape=("batch", *array.shape[1:]), optional=False))
    return tuple(inputs)


_SAMPLES = 64
"""Samples that are read to know the shapes of their images."""
