"""Export of the tower of a traced vision-language class: ``vision.onnx`` for one image or tile."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch

from compressor.artifacts.files import copy_file
from compressor.engine.contract import PassContext
from compressor.errors import ParityError, PassError
from compressor.graphs.decoder.interface import (
    FIXED_IMAGES_KEY,
    IMAGE_EMBEDS,
    IMAGE_TOKEN_KEY,
    MERGE_SIZE_KEY,
    VISION_MODEL,
)
from compressor.graphs.saving import file_metadata, save_checked_model
from compressor.graphs.simplify import strip_metadata
from compressor.models.checkpoint.layout import CONFIG
from compressor.models.families.transformers.images import GRIDS, PIXELS
from compressor.runtimes.onnxruntime.decoder.vision import VisionTower
from passes.export_onnx.class_tracing import trace_class
from passes.export_onnx.config import ExportOnnxConfig
from passes.export_onnx.images.decoder import image_token
from passes.export_onnx.images.fixed import FixedTower, most_frequent
from passes.export_onnx.images.run import ImageParts, merge_size
from passes.export_onnx.images.tower import features
from passes.export_onnx.packed import store_packed_tower
from passes.export_onnx.parity import Limits, Tolerance, cosines
from passes.export_onnx.tracing import GraphInterface

_OPSET = 20
"""The first opset whose GridSample is cubic."""


def export_tower(
    parts: ImageParts, config: ExportOnnxConfig, out: Path, context: PassContext
) -> dict[str, Any]:
    """Write ``vision.onnx`` and compare it with torch on the images of the samples.

    Returns:
        Statistics of the comparison for the summary, with the sizes of images that are fixed.

    Raises:
        PassError: torch cannot trace the tower.
        ParityError: limits are exceeded.
    """
    context.progress("vision tower", 0, 1, {})
    graph, fixed = trace_tower(parts)
    strip_metadata(graph)
    packed = store_packed_tower(graph, parts.folder)
    metadata = file_metadata(context.artifact_id, "transformers", None)
    metadata[IMAGE_TOKEN_KEY] = str(image_token(parts.module))
    if fixed:
        metadata[FIXED_IMAGES_KEY] = json.dumps(fixed)
        context.note(
            f"the class reads sizes of images as numbers: {VISION_MODEL} computes images of "
            + ", ".join(f"{name} {value[0]}" for name, value in fixed.items())
            + f" alone; {parts.count(fixed)} of {parts.count({})} images of the samples are"
        )
    if GRIDS in parts.tower.names:
        metadata[MERGE_SIZE_KEY] = str(merge_size(parts.module))
    threshold = config.external_data_threshold_mb * 1_000_000
    save_checked_model(graph, out, metadata, threshold, VISION_MODEL)
    copy_file(parts.folder / CONFIG, out / CONFIG)  # names the processor that goes with the tower
    limits = Limits.from_config(config.parity, Tolerance.FLOAT)
    statistics = compare_tower(parts, VisionTower(out, context.threads, "cpu"), limits)
    return statistics | packed | ({"fixed": fixed} if fixed else {})


def trace_tower(parts: ImageParts) -> tuple[ir.Model, dict[str, Any]]:
    """Trace the tower for one image with any number of patches, or for one tile.

    A tower that cannot be traced because it reads numbers from arrays is traced for images of one
    size, the most frequent of the samples.

    Returns:
        The graph, and the arrays that are constants in it.

    Raises:
        PassError: torch cannot trace the tower.
    """
    names = parts.tower.names
    units = [unit for sample in parts.samples for unit in parts.units(sample)]
    unit = max(units, key=lambda arrays: arrays[0].numel())
    dynamic: tuple[Any, ...] = tuple({} for _ in names)
    if GRIDS in names:
        patches = merge_size(parts.module) ** 2 * torch.export.Dim("merged")
        dynamic = tuple({0: patches} if name == PIXELS else {} for name in names)
    interface = GraphInterface(names, (IMAGE_EMBEDS,), (dynamic,), _OPSET)
    try:
        return trace_class(parts.tower, unit, interface), {}
    except PassError:
        unit = most_frequent(units, names)
        tower = FixedTower(parts.tower, unit)
        if GRIDS in names or not tower.fixed:
            raise
    inputs = tuple(value for name, value in zip(names, unit, strict=True) if name in tower.names)
    shapes: tuple[Any, ...] = tuple({} for _ in inputs)
    interface = GraphInterface(tower.names, (IMAGE_EMBEDS,), (shapes,), _OPSET)
    return trace_class(tower, inputs, interface), tower.fixed


def compare_tower(parts: ImageParts, exported: VisionTower, limits: Limits) -> dict[str, Any]:
    """Compare ``vision.onnx`` with the class in torch, on the samples whose images it computes.

    Raises:
        ParityError: limits are exceeded.
    """
    max_abs, cosine, count = 0.0, 1.0, 0
    for sample in parts.samples:
        if not parts.fits(sample, exported.fixed):
            continue
        with torch.inference_mode():
            expected_WH = features(parts.module, sample).numpy()
        units = [[value.numpy() for value in unit] for unit in parts.units(sample)]
        names = parts.tower.names
        actual_WH = np.concatenate(
            [exported.encode_unit(dict(zip(names, unit, strict=True))) for unit in units]
        )
        max_abs = max(max_abs, float(np.abs(actual_WH - expected_WH).max(initial=0)))
        cosine = min(cosine, float(cosines(expected_WH, actual_WH).min()))
        count += len(units)
    if not count:
        raise ParityError(
            f"no sample has images of the size of {VISION_MODEL} alone: nothing was compared",
            remedy="name samples with one image each, or with images of one size",
        )
    if not (max_abs <= limits.max_abs and cosine >= limits.cosine):
        raise ParityError(
            f"{VISION_MODEL} does not compute what the torch tower does: max|Δ| {max_abs:.3g} "
            f"(limit {limits.max_abs:g}), cosine {cosine:.6f} (limit {limits.cosine:g})",
            remedy="set the limits in `parity:`",
        )
    return {"images": count, "max_abs": max_abs, "cosine": cosine}
