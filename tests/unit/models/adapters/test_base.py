from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from compressor.errors import ModelError
from compressor.models.adapters.base import (
    BASE,
    AdapterBase,
    check_base,
    find_base,
    model_digest,
    read_base,
    write_base,
)


def write_model(folder: Path, value: float = 1.0) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text('{"model_type": "llama"}')
    save_file({"w": np.full(4, value, np.float32)}, folder / "model.safetensors")
    return folder


def write_adapter(folder: Path, base: Path) -> Path:
    folder.mkdir(parents=True)
    write_base(AdapterBase(artifact=None, digest=model_digest(base), name=str(base)), folder)
    return folder


def test_the_digest_covers_the_files_of_the_model_and_no_others(tmp_path: Path) -> None:
    model = write_model(tmp_path / "model")
    digest = model_digest(model)
    (model / "README.md").write_text("notes")
    assert model_digest(model) == digest == model_digest(write_model(tmp_path / "copy"))
    (model / "config.json").write_text('{"model_type": "qwen2"}')
    assert model_digest(model) != digest


def test_a_base_outside_of_a_store_is_found_by_its_path(tmp_path: Path) -> None:
    model = write_model(tmp_path / "model")
    adapter = write_adapter(tmp_path / "adapter", model)
    assert find_base(adapter) == model
    assert json.loads((adapter / BASE).read_text())["name"] == str(model)


def test_a_base_with_a_flipped_byte_is_refused(tmp_path: Path) -> None:
    model = write_model(tmp_path / "model")
    adapter = write_adapter(tmp_path / "adapter", model)
    content = bytearray((model / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (model / "model.safetensors").write_bytes(bytes(content))
    with pytest.raises(ModelError, match="not the base of the adapter"):
        find_base(adapter)


def test_another_model_is_refused(tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path / "adapter", write_model(tmp_path / "model"))
    with pytest.raises(ModelError, match="is not the base"):
        check_base(adapter, write_model(tmp_path / "other", 2.0))


def test_a_base_that_is_gone_is_named(tmp_path: Path) -> None:
    model = write_model(tmp_path / "model")
    adapter = write_adapter(tmp_path / "adapter", model)
    model.rename(tmp_path / "moved")
    with pytest.raises(ModelError, match="is not found"):
        find_base(adapter)


@pytest.mark.parametrize(
    "content", ["{}", "[", '{"artifact": null, "digest": "abc", "name": "base"}']
)
def test_a_damaged_record_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / BASE).write_text(content)
    with pytest.raises(ModelError, match=BASE):
        read_base(tmp_path)


def test_an_adapter_of_another_tool_does_not_state_its_base(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=f"has no {BASE}"):
        read_base(tmp_path)
