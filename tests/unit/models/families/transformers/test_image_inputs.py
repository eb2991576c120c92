"""Arrays of images: padded to a batch, joined again for a class, and divided image by image."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch import nn

from compressor.models.families.transformers.images import (
    accept_padded_images,
    class_image_inputs,
    image_units,
    pad_images,
    sample_images,
    without_padding,
)

PATCHES = [np.ones((3, 4), np.float32), np.zeros((1, 4), np.float32), np.empty((0, 4), np.float32)]
TILES = [np.ones((2, 3, 5, 5), np.float32), np.zeros((1, 3, 4, 5), np.float32)]
SIZES = [np.array([[4, 6], [0, 0]]), np.array([[1, 2]])]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("Qwen2VLForConditionalGeneration", {"pixel_values", "image_grid_thw"}),
        ("LlavaNextForConditionalGeneration", {"pixel_values", "image_sizes"}),
        ("Idefics3ForConditionalGeneration", {"pixel_values", "pixel_attention_mask"}),
        ("Lfm2VlForConditionalGeneration", {"pixel_values", "spatial_shapes"}),
        ("Gemma3ForConditionalGeneration", {"pixel_values", "token_type_ids"}),
    ],
)
def test_inputs_of_a_class_follow_from_its_forward(name: str, expected: set[str]) -> None:
    names = {spec.name for spec in class_image_inputs(getattr(transformers, name))}
    assert expected <= names
    assert not any("video" in name or "embed" in name or "past" in name for name in names)


@pytest.mark.parametrize("name", ["LlamaForCausalLM", "CLIPModel", "ViTModel", "T5Model"])
def test_other_classes_have_no_image_inputs(name: str) -> None:
    assert class_image_inputs(getattr(transformers, name)) == ()


@pytest.mark.parametrize("arrays", [PATCHES, TILES, SIZES], ids=["patches", "tiles", "sizes"])
def test_padding_is_removed_without_loss(arrays: list[Any]) -> None:
    padded = pad_images(arrays)
    assert padded.shape[:2] == (len(arrays), max(map(len, arrays)))
    for row, array in enumerate(arrays):
        restored = without_padding(padded[row])
        assert len(restored) == len(array)
        assert np.array_equal(restored[tuple(map(slice, array.shape))], array)


class Recorder(nn.Module):
    """Stand-in for a class, which returns its arguments."""

    rope_deltas: Any = 5

    @staticmethod
    def can_generate() -> bool:
        return True

    def forward(
        self,
        input_ids: torch.Tensor,
        pixel_values: torch.Tensor | None = None,
        image_sizes: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
    ) -> dict[str, Any]:
        return {"pixels": pixel_values, "sizes": image_sizes, "types": token_type_ids}


def test_arrays_of_a_batch_are_joined_for_the_class() -> None:
    module = Recorder()
    accept_padded_images(module)
    ids = torch.ones(2, 4, dtype=torch.int64)
    arguments = {"input_ids": ids, "token_type_ids": ids}
    pixels, sizes = torch.from_numpy(pad_images(TILES)), torch.from_numpy(pad_images(SIZES))
    result = module(**arguments, pixel_values=pixels, image_sizes=sizes)
    assert result["pixels"].shape == (3, 3, 5, 5)
    assert result["sizes"].tolist() == [[4, 6], [0, 0], [1, 2]]
    assert not result["pixels"].isnan().any()
    assert module.rope_deltas is None
    texts = module(**arguments, pixel_values=pixels[:, :0], image_sizes=sizes[:, :0])
    assert texts == {"pixels": None, "sizes": None, "types": None}


def test_patches_are_divided_by_their_grids() -> None:
    grids = np.array([[1, 2, 2], [1, 2, 4]])
    arrays = {"pixel_values": np.arange(24.0).reshape(12, 2), "image_grid_thw": grids}
    units = list(image_units(arrays, {"pixel_values": 2, "image_grid_thw": 2}))
    assert [len(unit["pixel_values"]) for unit in units] == [4, 8]
    assert units[1]["pixel_values"][0, 0] == 8
    assert units[1]["image_grid_thw"].tolist() == [[1, 2, 4]]


def test_tiles_that_only_fill_a_batch_are_left_out() -> None:
    pixels = np.ones((1, 3, 3, 2, 2), np.float32)
    pixels[0, 1] = 0
    arrays = {"pixel_values": pixels, "pixel_attention_mask": np.ones((1, 3, 2, 2), np.int64)}
    units = list(image_units(arrays, {"pixel_values": 5, "pixel_attention_mask": 4}))
    assert len(units) == 2
    assert units[0]["pixel_attention_mask"].shape == (1, 1, 2, 2)


def test_a_sample_of_a_batch_has_its_own_images() -> None:
    ids = np.ones((2, 5), np.int64)
    batch = {
        "input_ids": ids,
        "attention_mask": ids,
        "mm_token_type_ids": ids,
        "pixel_values": pad_images([PATCHES[0], PATCHES[2]]),
    }
    images = sample_images(batch, 0, 3)
    assert {name: array.shape for name, array in images.items()} == {
        "mm_token_type_ids": (1, 3),
        "pixel_values": (1, 3, 4),
    }
    assert sample_images(batch, 1, 5) == {}
    assert sample_images({"input_ids": ids, "label": ids}, 0, 5) == {}
