"""engine.json against the files beside it."""

import json

import pytest

from compressor.errors import DamagedArtifactError
from compressor.runtimes.tensorrt.manifest import ENGINE, read_verified_manifest
from tests.support.engines import write_engine_folder


@pytest.fixture
def folder(tmp_path):
    return write_engine_folder(tmp_path)


def test_a_manifest_is_read_as_it_was_written(folder):
    manifest = read_verified_manifest(folder)
    assert [engine.target for engine in manifest.engines] == ["sm86", "sm89"]
    assert manifest.profiles["x"].max == (4, 3)


def test_an_engine_outside_the_folder_is_not_read(folder):
    text = (folder / ENGINE).read_text()
    (folder / ENGINE).write_text(text.replace('"model.sm86.engine"', '"../model.sm86.engine"'))
    (folder.parent / "model.sm86.engine").write_bytes((folder / "model.sm86.engine").read_bytes())
    with pytest.raises(DamagedArtifactError, match=r"\.\./model\.sm86\.engine: outside the folder"):
        read_verified_manifest(folder)


@pytest.mark.parametrize(
    "change", [lambda tree: tree.pop("engines"), lambda tree: tree.update(version=2)]
)
def test_an_invalid_manifest_is_damaged(folder, change):
    tree = json.loads((folder / ENGINE).read_text())
    change(tree)
    (folder / ENGINE).write_text(json.dumps(tree))
    with pytest.raises(DamagedArtifactError, match=r"engine\.json is damaged"):
        read_verified_manifest(folder)
