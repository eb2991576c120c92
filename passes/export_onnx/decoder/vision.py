"""Graph of a vision tower: the patches of one image in, image embeddings out.

Shapes: P patches of D values, W = P / merge² image embeddings of width H.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.models.glm4v.modeling_glm4v import apply_rotary_pos_emb_vision

from compressor.artifacts.files import copy_file
from compressor.engine.contract import PassContext
from compressor.errors import NumericalError, ParityError
from compressor.graphs.decoder.interface import IMAGE_EMBEDS, MERGE_SIZE_KEY, VISION_MODEL
from compressor.graphs.saving import file_metadata, save_checked_model
from compressor.graphs.simplify import simplify, strip_metadata
from compressor.models.checkpoint.layout import CONFIG
from compressor.models.families.transformers.checkpoint import Checkpoint
from compressor.models.families.transformers.images import GRIDS, PIXELS, image_inputs
from compressor.models.families.transformers.layouts import LAYOUTS
from compressor.runtimes.onnxruntime.decoder.vision import VisionTower
from passes.export_onnx.config import ExportOnnxConfig
from passes.export_onnx.packed import store_packed_tower
from passes.export_onnx.parity import Limits, Tolerance, cosines
from passes.export_onnx.tracing import GraphInterface, trace

OPSET = 20
"""The first opset whose GridSample is cubic."""
_TRACED_GRID = (1, 4, 6)
"""Frames, and rows and columns of merged patches; likewise below."""
_COMPARED_GRIDS = ((1, 4, 4), (1, 6, 4), (1, 2, 10))
"""A square image, a high one and a wide one."""


class SingleImageTower(nn.Module):
    """The tower of ``glm4v`` for one image of any size: all its patches attend to each other.

    The positions of the patches follow from their number and the image's grid, so that no shape in
    the graph depends on values. transformers' own forward separates the patches of several images
    by values, which a graph cannot.
    """

    def __init__(self, tower: nn.Module) -> None:
        super().__init__()
        self.tower: Any = tower

    def forward(self, pixel_values: Tensor, image_grid_thw: Tensor) -> Tensor:
        """Return the image embeddings [W, H] of patches [P, D] in a grid [1, 3]."""
        tower, merge = self.tower, self.tower.spatial_merge_size
        x = tower.post_conv_layernorm(tower.patch_embed(pixel_values))
        indices = torch.arange(x.shape[0], device=x.device)
        window, within = indices // merge**2, indices % merge**2
        windows_across = image_grid_thw[0, 2] // merge
        row = window // windows_across * merge + within // merge
        column = window % windows_across * merge + within % merge
        cos, sin = tower.rotary_pos_emb(x, torch.stack([row, column], dim=1))
        length = torch.full_like(image_grid_thw[:, 0], x.shape[0])
        x = tower.embeddings(x, length, image_grid_thw, row, column)
        for block in tower.blocks:
            x = x + self._attention(block.attn, block.norm1(x), cos, sin)
            x = x + block.mlp(block.norm2(x))
        x = tower.post_layernorm(x).unflatten(0, (-1, merge, merge)).permute(0, 3, 1, 2)
        embeddings: Tensor = tower.merger(tower.downsample(x).flatten(1))
        return embeddings

    @staticmethod
    def _attention(attention: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        query, key, value = attention.qkv(x).unflatten(1, (3, attention.num_heads, -1)).unbind(1)
        query, key = apply_rotary_pos_emb_vision(query, key, cos, sin)
        query, key, value = (part.transpose(0, 1).unsqueeze(0) for part in (query, key, value))
        mixed = functional.scaled_dot_product_attention(query, key, value, scale=attention.scaling)
        result: Tensor = attention.proj(mixed[0].transpose(0, 1).flatten(1))
        return result


def export_vision(
    config: ExportOnnxConfig,
    tree: Mapping[str, Any],
    folder: Path,
    out: Path,
    context: PassContext,
) -> dict[str, Any]:
    """Write ``vision.onnx`` and compare it with torch's tower.

    Args:
        config: the pass's.
        tree: the checkpoint's config.json.
        folder: the checkpoint.
        out: the folder to write to.
        context: of the pass.

    Returns:
        Statistics of the comparison for the summary.

    Raises:
        NumericalError: torch's embeddings are not finite.
        ParityError: limits are exceeded.
    """
    context.progress("vision tower", 0, 1, {})
    tower, patch_values = load_tower(tree, folder), patch_size(tree)
    graph = onnx_from_tower(tower, patch_values)
    strip_metadata(graph)
    if config.simplify:
        result = simplify(graph)
        graph = result.model
        context.note(f"vision tower: {result.summary}")
    is_portable = config.decoder.target == "portable"
    packed = {} if is_portable else store_packed_tower(graph, folder)
    metadata = file_metadata(context.artifact_id, "transformers", None)
    metadata[MERGE_SIZE_KEY] = str(tower.spatial_merge_size)
    threshold = config.external_data_threshold_mb * 1_000_000
    save_checked_model(graph, out, metadata, threshold, VISION_MODEL)
    copy_file(folder / CONFIG, out / CONFIG)  # names the image processor that goes with the tower
    limits = Limits.from_config(config.parity, Tolerance.FLOAT)
    return compare_tower(tower, out, patch_values, limits, context.threads) | packed


def load_tower(tree: Mapping[str, Any], folder: Path) -> nn.Module:
    """Return the vision tower of a checkpoint in float32, packed or not, and nothing else of it."""
    name = LAYOUTS[tree["model_type"]].vision
    assert name is not None  # noqa: S101 - the architecture has images
    return Checkpoint(folder, tree).load(name)


def patch_size(tree: Mapping[str, Any]) -> int:
    """Return the number of values of a patch."""
    [values] = [spec.shape[2] for spec in image_inputs(tree) if spec.name == PIXELS]
    return int(values)


def onnx_from_tower(tower: nn.Module, patch_values: int) -> ir.Model:
    """Trace a tower for one image with any number of patches.

    Args:
        tower: float32, in eval mode.
        patch_values: values of a patch.
    """
    merge = int(tower.spatial_merge_size)  # type: ignore[arg-type]
    patches = merge**2 * torch.export.Dim("words")
    grid = np.array([_TRACED_GRID]) * [1, merge, merge]
    sample = (torch.zeros(int(grid.prod()), patch_values), torch.from_numpy(grid))
    interface = GraphInterface((PIXELS, GRIDS), (IMAGE_EMBEDS,), ({0: patches}, {}), OPSET)
    model = trace(SingleImageTower(tower), sample, interface)
    pixels, [embeddings] = model.graph.inputs[0], model.graph.outputs
    pixels.shape = ir.Shape(["patches", patch_values])
    embeddings.shape = ir.Shape(["words", *(embeddings.shape or [0, None])[1:]])
    return model


def compare_tower(
    tower: nn.Module, folder: Path, patch_values: int, limits: Limits, threads: int
) -> dict[str, Any]:
    """Compare ``vision.onnx`` with torch's tower, on noise in images of several shapes.

    Raises:
        NumericalError: torch's embeddings are not finite.
        ParityError: limits are exceeded.
    """
    exported = VisionTower(folder, threads, "cpu")
    generator = torch.Generator().manual_seed(0)
    max_abs, cosine = 0.0, 1.0
    for frames, rows, columns in _COMPARED_GRIDS:
        grid = torch.tensor([[frames, rows * exported.merge, columns * exported.merge]])
        pixels = torch.randn(int(grid.prod()), patch_values, generator=generator)
        with torch.inference_mode():
            expected_WH = tower(pixels, grid_thw=grid).pooler_output.numpy()
        if not np.isfinite(expected_WH).all():
            raise NumericalError("the embeddings of the vision tower in torch are NaN or infinite")
        actual_WH = exported.encode_image(pixels.numpy(), grid[0].numpy())
        max_abs = max(max_abs, float(np.abs(actual_WH - expected_WH).max(initial=0)))
        cosine = min(cosine, float(cosines(expected_WH, actual_WH).min()))
    if not (max_abs <= limits.max_abs and cosine >= limits.cosine):
        raise ParityError(
            f"{VISION_MODEL} does not compute what the torch tower does: max|Δ| {max_abs:.3g} "
            f"(limit {limits.max_abs:g}), cosine {cosine:.6f} (limit {limits.cosine:g})",
            remedy="set the limits in `parity:`",
        )
    return {"images": len(_COMPARED_GRIDS), "max_abs": max_abs, "cosine": cosine}
