"""Pictures that the source images makes as a checkpoint's image processor makes them."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

from calibration.sources.images import Images, ImagesConfig
from calibration.sources.picture_processing import read_processing
from compressor.data.contract import InputFacts, SourceContext, StarterInputs
from compressor.errors import DataError

PLAIN = {
    "image_processor_type": "ViTImageProcessor",
    "size": {"height": 16, "width": 16},
    "resample": 2,
    "image_mean": [0.5, 0.4, 0.3],
    "image_std": [0.2, 0.3, 0.4],
}


def write(folder: Path, *labels: str, **changes: Any) -> Path:
    """Write a processor, a config.json with class numbers, and one picture for each of 3 classes.

    Fields that are None are left out.
    """
    model = folder / "model"
    model.mkdir()
    fields = {name: value for name, value in (PLAIN | changes).items() if value is not None}
    (model / "preprocessor_config.json").write_text(json.dumps(fields))
    numbers = {label: number for number, label in enumerate(labels)}
    (model / "config.json").write_text(json.dumps({"label2id": numbers}))
    generator = np.random.default_rng(0)
    for name, (height, width) in {"a": (40, 61), "b": (53, 37), "c": (45, 45)}.items():
        (folder / "p" / name).mkdir(parents=True)
        pixels = generator.integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "p" / name / "0.png")
    return model


def config_of(**fields: Any) -> ImagesConfig:
    return ImagesConfig(
        source="images", path="p", processor="model", input="pixel_values", **fields
    )


@pytest.mark.parametrize(
    ("module", "name", "fields"),
    [
        ("vit", "ViT", {"size": {"height": 16, "width": 24}}),
        ("deit", "DeiT", {"size": {"height": 20, "width": 20}, "crop_size": 16}),
        ("clip", "CLIP", {"size": {"shortest_edge": 16}, "crop_size": {"height": 15, "width": 12}}),
        ("bit", "Bit", {"size": {"shortest_edge": 21}, "crop_size": {"height": 16, "width": 16}}),
        ("siglip", "Siglip", {"size": {"height": 16, "width": 16}, "resample": 3}),
        ("convnext", "ConvNext", {"size": {"shortest_edge": 16}, "crop_pct": 0.8}),
        ("convnext", "ConvNext", {"size": {"shortest_edge": 384}}),
        ("mobilenet_v1", "MobileNetV1", {"size": {"shortest_edge": 20}, "crop_size": 16}),
        ("pvt", "Pvt", {"do_normalize": False, "rescale_factor": 0.01}),
    ],
)
def test_pictures_are_those_of_the_processor(
    tmp_path: Path, module: str, name: str, fields: dict[str, Any]
) -> None:
    model = write(tmp_path, image_processor_type=f"{name}ImageProcessor", **fields)
    source = f"transformers.models.{module}.image_processing_pil_{module}"
    processor = getattr(importlib.import_module(source), f"{name}ImageProcessorPil")
    expected = processor.from_pretrained(model)(
        [Image.open(file) for file in sorted((tmp_path / "p").rglob("*.png"))],
        return_tensors="np",
    )["pixel_values"]
    context = SourceContext(tmp_path)
    assert Images().problems(config_of(), context) == []
    (facts,) = Images().facts(config_of(), context).inputs or ()
    pixels = Images().load(config_of(), context).batch(np.arange(3))["pixel_values"]
    assert (facts.dtype, (3, *facts.shape)) == (pixels.dtype.name, pixels.shape)
    np.testing.assert_allclose(pixels, expected, atol=2e-5)


def test_classes_have_the_numbers_of_the_checkpoint(tmp_path: Path) -> None:
    write(tmp_path, "c", "a", "x", "b")
    samples = Images().load(config_of(), SourceContext(tmp_path))
    assert samples.batch(np.arange(3))["label"].tolist() == [1, 3, 0]
    assert samples.class_names() == ("c", "a", "x", "b")


def test_folders_that_the_checkpoint_does_not_name_are_numbered_by_name(tmp_path: Path) -> None:
    write(tmp_path, "c", "a")
    notes: list[str] = []
    samples = Images().load(config_of(), SourceContext(tmp_path, note=notes.append))
    assert samples.batch(np.arange(3))["label"].tolist() == [0, 1, 2]
    assert any("does not name b" in note for note in notes)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"image_processor_type": "SamImageProcessor"}, "SamImageProcessor are not known"),
        ({"do_pad": True, "rescale_offset": True}, "`do_pad: True`.*; `rescale_offset: True`"),
        ({"size": {"shortest_edge": 16}}, "pictures of many sizes"),
        ({"size": {"shortest_edge": 16, "longest_edge": 32}}, "`size` is neither"),
        ({"do_center_crop": True, "crop_size": 20}, "`crop_size` is larger than `size`"),
        ({"resample": None, "image_mean": None}, "`resample` is not.*; `image_mean` is not"),
        ({"image_std": [0.1, 0.0, 0.1]}, "`image_std` divides"),
        ({"crop_pct": 0.9}, "`crop_pct: 0.9` is not supported"),
    ],
)
def test_fields_that_cannot_be_followed_are_named(
    tmp_path: Path, changes: dict[str, Any], expected: str
) -> None:
    model = write(tmp_path, **changes)
    with pytest.raises(DataError, match=expected):
        read_processing(model)
    assert len(Images().problems(config_of(), SourceContext(tmp_path))) == 1


def test_a_processor_excludes_own_numbers() -> None:
    with pytest.raises(ValidationError, match="leave `image_size` and `mean` and `std` out"):
        config_of(image_size=32, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))


def test_the_digest_follows_the_processor_but_not_its_path(tmp_path: Path) -> None:
    model = write(tmp_path)
    context = SourceContext(tmp_path)
    before = Images().digest(config_of(), context)
    model.rename(tmp_path / "other")
    moved = config_of().model_copy(update={"processor": "other"})
    assert Images().digest(moved, context) == before
    (tmp_path / "other/preprocessor_config.json").write_text(json.dumps(PLAIN | {"resample": 3}))
    assert Images().digest(moved, context) != before


def test_a_model_with_a_processor_gets_its_pictures(tmp_path: Path) -> None:
    inputs = (InputFacts("pixel_values", "float32", (3, None, None)),)
    model = StarterInputs(write(tmp_path), inputs, frozenset({"pixel_values"}))
    starter = Images().starter(model)
    assert starter is not None
    assert starter.fields["processor"] == tmp_path / "model"
    assert not {"image_size", "mean", "std"} & set(starter.fields)
