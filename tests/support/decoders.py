"""Small language models, packed and exported to ONNX by the passes."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import torch

from calibration.sources.arrays import ArrayDataset
from compressor.data.contract import Dataset
from compressor.engine.contract import PassContext, PassOutput
from compressor.models.families.transformers.family import Transformers
from passes.export_onnx.config import ExportOnnxConfig
from passes.export_onnx.step import ExportOnnx
from tests.support.awq import run_awq

FAMILY = Transformers()
TOKENS = np.random.default_rng(0).integers(3, 490, (4, 48))
FIELDS: dict[str, Any] = {"parity": {"data": "text"}}
"""Fields of an `export-onnx` step that compares on ``TOKENS``."""
CALIBRATION = {"data": "text", "num_samples": 12, "batch_size": 4}


def save_decoder(
    folder: Path, preset: str, changes: dict[str, Any] | None = None
) -> SimpleNamespace:
    """Save a checkpoint whose norms, biases and logits matter; its artifact.

    Args:
        folder: the folder to write to.
        preset: a preset of the family.
        changes: fields of config.json that replace the preset's.
    """
    torch.manual_seed(1)
    config = FAMILY.presets[preset]
    if changes is not None:
        config = type(config).model_validate(config.model_dump() | changes)
    module = FAMILY.build(config)
    for weight in module.parameters():
        if weight.ndim == 1:
            weight.data = weight.data + 0.2 * torch.randn_like(weight)
        else:
            weight.data = 3 * weight.data
    FAMILY.save(module, config, folder)
    return SimpleNamespace(model=folder, manifest=SimpleNamespace(id="ab12", format="torch"))


def pack_decoder(parent: Any, folder: Path, **fields: Any) -> SimpleNamespace:
    """Pack a checkpoint with the `awq` pass in groups of 32; its artifact."""
    out, _ = run_awq(parent, folder, {"group_size": 32, "calibration": CALIBRATION, **fields})
    return SimpleNamespace(model=out, manifest=SimpleNamespace(id="ef56", format="packed"))


def export_decoder(
    parent: Any, out: Path, fields: dict[str, Any] = FIELDS, dataset: Dataset | None = None
) -> tuple[PassOutput, list[str]]:
    """Export a checkpoint with all checks of the pass.

    Args:
        parent: its artifact.
        out: the folder to create.
        fields: fields of the config.
        dataset: the data set ``text``; by default ``TOKENS``.

    Returns:
        The output and the notes.
    """
    out.mkdir(parents=True)
    notes: list[str] = []
    text = dataset or ArrayDataset({"input_ids": TOKENS}, ("input_ids",))
    context = PassContext(
        artifacts={},
        data={"text": text}.__getitem__,
        work=out,
        seed=0,
        threads=1,
        device="cpu",
        artifact_id="cd34",
        progress=lambda *_: None,
        note=notes.append,
    )
    config, step = ExportOnnxConfig.model_validate(fields), ExportOnnx()
    step.requires(config, parent, context)
    output = step.run(config, parent, out, context)
    step.ensures(config, parent, out, context)
    return output, notes


def initializers(folder: Path) -> dict[str, np.ndarray]:
    """Return the initializers of a folder's model.onnx by name."""
    graph = onnx.load(folder / "model.onnx").graph
    return {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
