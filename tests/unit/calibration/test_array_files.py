"""Data source ``arrays``: .npz and .safetensors files, alone or in a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from calibration.sources.array_files import Arrays, ArraysConfig
from compressor.data.contract import InputFacts, SourceContext
from compressor.errors import DataError

IMAGES = np.arange(4 * 3, dtype=np.float32).reshape(4, 3)
LABELS = np.array([0, 2, 1, 2])


def config(path: str, **fields: Any) -> ArraysConfig:
    return ArraysConfig(source="arrays", path=path, **fields)


@pytest.fixture
def context(tmp_path: Path) -> SourceContext:
    return SourceContext(tmp_path)


def problems(path: str, context: SourceContext, **fields: Any) -> str:
    return "\n".join(Arrays().problems(config(path, **fields), context))


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_arrays_of_a_file_are_inputs_and_labels(suffix: str, context: SourceContext) -> None:
    file = context.base / f"set{suffix}"
    arrays = {"image": IMAGES, "label": LABELS}
    if suffix == ".npz":
        np.savez_compressed(file, **arrays)
    else:
        save_file(arrays, file)
    source, read = Arrays(), config(file.name)
    assert source.problems(read, context) == []
    facts = source.facts(read, context)
    assert facts.inputs == (InputFacts("image", "float32", (3,)),)
    assert (facts.num_samples, facts.num_classes, facts.has_labels) == (4, 3, True)
    batch = source.load(read, context).batch(np.array([1, 3]))
    assert np.array_equal(batch["image"], IMAGES[[1, 3]])
    assert batch["label"].tolist() == [2, 2]


def test_files_of_a_folder_are_joined_in_the_order_of_their_names(context: SourceContext) -> None:
    np.savez(context.base / "b.npz", x=IMAGES[2:], y=LABELS[2:])
    save_file({"x": IMAGES[:2], "y": LABELS[:2]}, context.base / "a.safetensors")
    dataset = Arrays().load(config(".", inputs={"image": "x"}, label="y"), context)
    assert np.array_equal(dataset.batch(np.arange(4))["image"], IMAGES)
    assert dataset.batch(np.arange(4))["label"].tolist() == LABELS.tolist()
    assert (dataset.input_names, dataset.label_name) == (("image",), "label")


def test_a_draw_is_part_of_the_digest_and_keeps_rows_together(context: SourceContext) -> None:
    np.savez(context.base / "set.npz", image=np.arange(50), label=np.arange(50))
    drawn = Arrays().load(config("set.npz", num_samples=7, seed=1), context)
    batch = drawn.batch(np.arange(7))
    assert np.array_equal(batch["image"], batch["label"])
    digests = {
        Arrays().digest(config("set.npz", **draw), context) for draw in ({}, {"num_samples": 7})
    }
    assert len(digests) == 2


def test_the_digest_covers_the_content_and_not_the_path(context: SourceContext) -> None:
    for name in ("a.npz", "b.npz"):
        np.savez(context.base / name, image=IMAGES)
    first, second = (Arrays().digest(config(name), context) for name in ("a.npz", "b.npz"))
    np.savez(context.base / "b.npz", image=IMAGES + 1)
    assert first == second != Arrays().digest(config("b.npz"), context)


def test_arrays_of_python_objects_are_refused(context: SourceContext) -> None:
    np.savez(context.base / "set.npz", image=np.array([{"a": 1}], dtype=object))
    assert "holds Python objects" in problems("set.npz", context)
    with pytest.raises(DataError, match="Python objects"):
        Arrays().load(config("set.npz"), context)


@pytest.mark.parametrize(
    "array", [np.array(["a", "b", "c", "d"]), np.zeros(4, "V2"), np.ones(4, "S8")]
)
def test_arrays_that_are_no_numbers_are_refused(
    array: np.ndarray[Any, Any], context: SourceContext
) -> None:
    np.savez(context.base / "set.npz", image=IMAGES, city=array)
    assert f"'city' holds {array.dtype.name}, not numbers" in problems("set.npz", context)
    assert problems("set.npz", context, inputs={"image": "image"}) == ""
    assert "labels 'city'" in problems("set.npz", context, label="city")


def test_every_array_that_does_not_fit_is_named(context: SourceContext) -> None:
    np.savez(context.base / "set.npz", image=IMAGES, mask=IMAGES[:2], kind=IMAGES)
    text = problems("set.npz", context, inputs={"image": "picture", "mask": "mask"}, label="kind")
    assert "no array 'picture'" in text
    assert "labels 'kind' are float32" in text
    assert "different numbers of samples: mask 2, kind 4" in text
    np.savez(context.base / "negative.npz", image=IMAGES, label=LABELS - 1)
    assert "the value -1" in problems("negative.npz", context)


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("set.npz", b"PK\x03\x04 cut off", "is damaged"),
        ("set.safetensors", b"\xff" * 40, "truncated"),
        ("set.csv", b"1,2", "neither a .npz nor a .safetensors"),
    ],
)
def test_other_files_are_named(
    name: str, content: bytes, expected: str, context: SourceContext
) -> None:
    (context.base / name).write_bytes(content)
    assert expected in problems(name, context)
    assert "does not exist" in problems("absent.npz", context)


def test_a_folder_whose_files_differ_is_refused(context: SourceContext) -> None:
    np.savez(context.base / "a.npz", image=IMAGES)
    np.savez(context.base / "b.npz", image=IMAGES.astype(np.float64))
    assert "a sample of image is float64 [3], in them float32 [3]" in problems(".", context)


def test_float64_is_read_as_float32(context: SourceContext) -> None:
    np.savez(context.base / "set.npz", image=IMAGES.astype(np.float64))
    source, read = Arrays(), config("set.npz")
    assert source.facts(read, context).inputs == (InputFacts("image", "float32", (3,)),)
    batch = source.load(read, context).batch(np.array([1]))
    assert batch["image"].dtype == np.float32
