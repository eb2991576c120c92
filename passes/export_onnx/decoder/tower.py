"""A vision tower as a graph of its own: the patches of one image in, the words that a decoder reads out.

Shapes: P patches of D values, W = P / merge² words of width H.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from onnxscript import ir
from torch import Tensor, nn
from torch.nn import functional
from transformers.models.glm4v.modeling_glm4v import apply_rotary_pos_emb_vision

from compressor.errors import NumericalError, ParityError
from compressor.graphs.decoder.interface import IMAGE_EMBEDS
from compressor.models.checkpoint.checkpoint_files import CheckpointFiles
from compressor.models.families.transformers.checkpoint import build_on_meta
from compressor.models.families.transformers.images import GRIDS, PIXELS, image_inputs
from compressor.models.families.transformers.layouts import LAYOUTS
from compressor.models.quantized.weight_grid import is_packed
from compressor.models.quantized.packed_checkpoint import read_dequantized
from compressor.runtimes.onnxruntime.decoder.vision import VisionTower
from passes.export_onnx.parity import Limits
from passes.export_onnx.tracing import exported

_TRACED_GRID = (1, 4, 6)
"""In merged patches, frames apart; so are those compared."""
_COMPARED_GRIDS = ((1, 4, 4), (1, 6, 4), (1, 2, 10))
"""Square, high and wide."""
OPSET = 20
"""Where GridSample says that it is cubic."""


class OneImage(nn.Module):
    """The tower of ``glm4v`` for one image of any size: all its patches see each other.

    Where patches lie follows from their number and the image's grid: no shape in the graph depends on values. transformers'
    own forward cuts the patches of several images apart by values, which no graph can hold.
    """

    def __init__(self, tower: nn.Module) -> None:
        super().__init__()
        self.tower: Any = tower

    def forward(self, pixel_values: Tensor, image_grid_thw: Tensor) -> Tensor:
        """[P, D] and [1, 3] to [W, H]."""
        tower, merge = self.tower, self.tower.spatial_merge_size
        x = tower.post_conv_layernorm(tower.patch_embed(pixel_values))
        places = torch.arange(x.shape[0], device=x.device)
        window, within = places // merge**2, places % merge**2
        across = image_grid_thw[0, 2] // merge
        row = window // across * merge + within // merge
        column = window % across * merge + within % merge
        cos, sin = tower.rotary_pos_emb(x, torch.stack([row, column], dim=1))
        whole = torch.full_like(image_grid_thw[:, 0], x.shape[0])
        x = tower.embeddings(x, whole, image_grid_thw, row, column)
        for block in tower.blocks:
            x = x + self._attention(block.attn, block.norm1(x), cos, sin)
            x = x + block.mlp(block.norm2(x))
        x = tower.post_layernorm(x).unflatten(0, (-1, merge, merge)).permute(0, 3, 1, 2)
        merged: Tensor = tower.merger(tower.downsample(x).flatten(1))
        return merged

    @staticmethod
    def _attention(attention: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        query, key, value = attention.qkv(x).unflatten(1, (3, attention.num_heads, -1)).unbind(1)
        query, key = apply_rotary_pos_emb_vision(query, key, cos, sin)
        query, key, value = (part.transpose(0, 1).unsqueeze(0) for part in (query, key, value))
        found = functional.scaled_dot_product_attention(query, key, value, scale=attention.scaling)
        said: Tensor = attention.proj(found[0].transpose(0, 1).flatten(1))
        return said


def tower_of(tree: Mapping[str, Any], folder: Path) -> nn.Module:
    """The tower of a checkpoint, packed or not, float32, and nothing else of it."""
    name = LAYOUTS[tree["model_type"]].vision
    assert name is not None  # noqa: S101  whoever calls has asked
    tower = build_on_meta(tree).get_submodule(name)
    files = CheckpointFiles(folder)
    found = (
        read_dequantized(folder, tree, f"{name}.")
        if is_packed(tree)
        else files.tensors(files.names_below(name))
    )
    tower.load_state_dict(
        {key.removeprefix(f"{name}."): value.float() for key, value in found}, assign=True
    )
    return tower


def values_of(tree: Mapping[str, Any]) -> int:
    """Of a patch."""
    [values] = [int(one.shape[2]) for one in image_inputs(tree) if one.name == PIXELS]
    return values


def onnx_from_tower(tower: nn.Module, values: int) -> ir.Model:
    """The graph; the number of patches stays variable.

    Args:
        tower: float32, in eval mode.
        values: of a patch.
    """
    merge = int(tower.spatial_merge_size)  # type: ignore[arg-type]
    patches = merge**2 * torch.export.Dim("words")
    grid = np.array([_TRACED_GRID]) * [1, merge, merge]
    sample = (torch.zeros(int(grid.prod()), values), torch.from_numpy(grid))
    model = exported(
        OneImage(tower), sample, (PIXELS, GRIDS), (IMAGE_EMBEDS,), ({0: patches}, {}), OPSET
    )
    pixels, [words] = model.graph.inputs[0], model.graph.outputs
    pixels.shape = ir.Shape(["patches", values])
    words.shape = ir.Shape(["words", *(words.shape or [0, None])[1:]])
    return model


def compare_tower(
    tower: nn.Module, folder: Path, values: int, limits: Limits, threads: int
) -> dict[str, Any]:
    """Hold ``vision.onnx`` against transformers' own tower, on noise in images of several shapes.

    Raises:
        NumericalError: torch answers with NaN or infinity.
        ParityError: a limit is broken.
    """
    ours = VisionTower(folder, threads, "cpu")
    draw = torch.Generator().manual_seed(0)
    furthest, cosine = 0.0, 1.0
    for frames, height, width in _COMPARED_GRIDS:
        grid = torch.tensor([[frames, height * ours.merge, width * ours.merge]])
        pixels = torch.randn(int(grid.prod()), values, generator=draw)
        with torch.inference_mode():
            wanted_WH = tower(pixels, grid_thw=grid).pooler_output.numpy()
        if not np.isfinite(wanted_WH).all():
            raise NumericalError("the vision tower answers with NaN or infinity in torch")
        got_WH = ours.encode_image(pixels.numpy(), grid[0].numpy())
        furthest = max(furthest, float(np.abs(got_WH - wanted_WH).max(initial=0)))
        cosine = min(cosine, *_cosines(wanted_WH, got_WH))
    if not (furthest <= limits.max_abs and cosine >= limits.cosine):
        raise ParityError(
            f"vision.onnx does not compute what the torch tower does: max|Δ| {furthest:.3g} (limit {limits.max_abs:g}), "
            f"cosine {cosine:.6f} (limit {limits.cosine:g})",
            remedy="set `parity:` to what is acceptable",
        )
    return {"images": len(_COMPARED_GRIDS), "max_abs": furthest, "cosine": cosine}


def _cosines(a_WH: np.ndarray[Any, Any], b_WH: np.ndarray[Any, Any]) -> Sequence[float]:
    lengths = np.linalg.norm(a_WH, axis=1) * np.linalg.norm(b_WH, axis=1)
    found: list[float] = ((a_WH * b_WH).sum(axis=1) / np.maximum(lengths, 1e-30)).tolist()
    return found
