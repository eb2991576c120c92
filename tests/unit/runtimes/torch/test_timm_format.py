"""Folders of timm: recognized without the library, and taken over as a module with it."""

from __future__ import annotations

from pathlib import Path

import pytest

from compressor.errors import CompressError, MissingExtraError
from compressor.models.families.module.probing import unfilled_module
from compressor.models.torchvision_operators import declare_missing_operators
from compressor.runtimes.formats import recognize
from tests.support.model_files import write_json, write_weights

CONFIG = {
    "architecture": "resnet10t",
    "num_classes": 5,
    "num_features": 512,
    "pretrained_cfg": {"input_size": [3, 32, 32], "mean": [0.5, 0.5, 0.5], "std": [1, 1, 1]},
}


def test_a_folder_is_described_without_the_library(tmp_path: Path) -> None:
    write_json(tmp_path / "config.json", CONFIG)
    write_weights(tmp_path / "model.safetensors")
    stored = recognize(tmp_path)
    assert stored.format.name == "timm"
    assert stored.format.title(tmp_path) == "a model of timm: resnet10t"
    assert ("classes", "5") in stored.format.describe(tmp_path)
    assert "mean: [0.5, 0.5, 0.5]" in stored.format.notes(tmp_path)[0]
    assert stored.format.tensor_listing(tmp_path)


def test_a_missing_library_names_the_extra(tmp_path: Path) -> None:
    try:
        declare_missing_operators()
        import timm  # noqa: F401
    except ImportError:
        pass
    else:
        pytest.skip("timm is installed")
    write_json(tmp_path / "config.json", CONFIG)
    write_weights(tmp_path / "model.safetensors")
    with pytest.raises(MissingExtraError, match="timm") as error:
        recognize(tmp_path).format.module_source(tmp_path)
    assert "[timm]" in str(error.value.remedy)


def test_a_folder_is_a_module_with_its_weights(tmp_path: Path) -> None:
    declare_missing_operators()
    timm = pytest.importorskip("timm")
    from safetensors.torch import save_file

    save_file(
        timm.create_model("resnet10t", num_classes=5).state_dict(), tmp_path / "model.safetensors"
    )
    write_json(tmp_path / "config.json", CONFIG)
    source = recognize(tmp_path).format.module_source(tmp_path)
    assert source is not None
    assert source.config.input_specs()[0].shape == ("batch", 3, 32, 32)
    assert list(source.config.output_paths) == ["logits"]
    assert source.config.counts is not None
    assert source.config.counts.classes == 5
    assert unfilled_module(source.config).fc.weight.shape == (5, 512)
    write_json(tmp_path / "config.json", CONFIG | {"num_classes": 6})
    with pytest.raises(CompressError, match=r"fc.weight: float32 \[5, 512\] in the file"):
        recognize(tmp_path).format.module_source(tmp_path)
