"""Weight files that count: links, pointers and indexes as they lie on people's disks."""

import json

import pytest

from compressor.errors import ModelError
from compressor.models.checkpoint.description import read_description
from tests.support.checkpoints import stored_checkpoint

INDEX = "model.safetensors.index.json"


@pytest.fixture
def folder(tmp_path):
    stored = stored_checkpoint("tiny-llama")
    stored.shards = 2
    return stored.write(tmp_path / "checkpoint")


def change_index(folder, change):
    index = json.loads((folder / INDEX).read_text())
    change(index)
    (folder / INDEX).write_text(json.dumps(index))


def refusal(folder):
    with pytest.raises(ModelError) as refused:
        read_description(folder)
    return refused.value


def test_shards_that_are_links_into_a_cache_are_read(folder, tmp_path):
    blobs = tmp_path / "blobs"
    blobs.mkdir()
    for number, file in enumerate(sorted(folder.iterdir())):
        file.rename(blobs / str(number))
        file.symlink_to(blobs / str(number))
    assert len(read_description(folder).weights.tensors) == 29


def test_a_shard_may_be_named_with_a_leading_dot(folder):
    def change(index):
        index["weight_map"] = {name: f"./{file}" for name, file in index["weight_map"].items()}

    change_index(folder, change)
    assert len(read_description(folder).weights.tensors) == 29


def test_a_pointer_of_git_lfs_is_named_with_its_remedy(folder):
    shard = folder / "model-00002-of-00002.safetensors"
    shard.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    refused = refusal(folder)
    assert f"{shard.name} is a Git LFS pointer" in refused.what
    assert "git lfs pull" in refused.remedy


def test_a_link_without_its_file_is_named(folder):
    (folder / INDEX).unlink()
    for file in folder.glob("*.safetensors"):
        file.unlink()
    (folder / "model.safetensors").symlink_to("../blobs/0")
    refused = refusal(folder)
    assert "model.safetensors is a link to ../blobs/0, which does not exist" in refused.what


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"null", "is null, expected an object"),
        (b"{", "is not valid JSON"),
        (b'{"metadata": {}, "weight_map": {}}', "has to name a file for each tensor"),
        (b'{"metadata": {}, "weight_map": {"a": null}}', "has to name a file for each tensor"),
    ],
)
def test_a_damaged_index_is_named(folder, content, what):
    (folder / INDEX).write_bytes(content)
    refused = refusal(folder)
    assert what in refused.what
    assert "copy it again" in refused.remedy


def test_an_index_without_metadata_is_refused_with_a_remedy_that_works(folder):
    change_index(folder, lambda index: index.pop("metadata"))
    assert 'add `"metadata": {}`' in refusal(folder).remedy
    change_index(folder, lambda index: index.update(metadata={}))
    read_description(folder)


def test_shards_in_another_folder_are_refused_with_a_remedy_that_works(folder):
    (folder / "sub").mkdir()
    for file in folder.glob("*.safetensors"):
        file.rename(folder / "sub" / file.name)

    def name_with_folder(index):
        index["weight_map"] = {name: f"sub/{file}" for name, file in index["weight_map"].items()}

    def name_without_folder(index):
        index["weight_map"] = {name: file[4:] for name, file in index["weight_map"].items()}

    change_index(folder, name_with_folder)
    assert "name them in it without folders" in refusal(folder).remedy
    for file in (folder / "sub").iterdir():
        file.rename(folder / file.name)
    change_index(folder, name_without_folder)
    read_description(folder)


def test_generation_settings_that_are_no_json_are_refused(folder):
    (folder / "generation_config.json").write_text("{bad")
    refused = refusal(folder)
    assert "generation_config.json is not valid JSON" in refused.what
    (folder / "generation_config.json").unlink()
    read_description(folder)
