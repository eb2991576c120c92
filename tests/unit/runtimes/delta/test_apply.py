"""Packages are applied to their base alone, in order, whole; and end in the announced digest."""

import datetime
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import safetensors.numpy

from compressor.artifacts.trust import REQUIRE_SIGNATURES
from compressor.errors import DamagedArtifactError, UsageError
from compressor.models.adapters.base import BASE_KEY
from compressor.models.adapters.layout import ADAPTER_WEIGHTS
from compressor.runtimes.delta.apply import apply_package, undo_package
from compressor.runtimes.delta.identity import open_base
from compressor.runtimes.delta.signatures import sign_package
from tests.support.deltas import (
    application,
    float_base,
    make_package,
    write_keys,
    written_adapter,
)
from tests.support.tiny_files import tiny_network

SHAPES = {"model.layers.0.self_attn.q_proj": (64, 64), "model.layers.1.self_attn.v_proj": (32, 64)}
READER = Path(__file__).parents[4] / "examples" / "delta" / "apply_delta.py"


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with a base and packages with the counters 1 to 3, of adapters that differ."""
    home = tmp_path_factory.mktemp("packages")
    base = float_base(home / "base")
    for counter in (1, 2, 3):
        adapter = written_adapter(
            home / str(counter) / "model", base, dict(list(SHAPES.items())[: 1 + counter % 2])
        )
        fields = {"counter": counter, "expires": "2099-01-31T00:00:00Z"}
        if counter == 3:
            fields["series"] = "other"
        file, _ = make_package(adapter, base, home / f"work{counter}", **fields)
        file.rename(home / f"{counter}.aglmdelta")
    return home


@pytest.fixture
def apply(home, tmp_path):
    """Return a function that applies the package of a number to ``tmp_path/out``."""

    def apply(number, **fields):
        file = home / f"{number}.aglmdelta"
        return apply_package(application(file, home / "base", tmp_path / "out", **fields))

    return apply


def test_the_result_has_the_announced_digest_and_peft_files(home, apply, tmp_path):
    update, new = apply(1)
    assert new
    assert open_base(tmp_path / "out").digest == update.digest
    stored = safetensors.numpy.load_file(tmp_path / "out" / "adapter_model.safetensors")
    exact = safetensors.numpy.load_file(home / "1" / "model" / "adapter_model.safetensors")
    assert stored.keys() == exact.keys()
    for name, values in exact.items():
        assert np.abs(stored[name] - values).max() <= np.abs(values).max() / 250
    assert apply(1) == (update, False)


def test_the_same_bytes_are_written_each_time(home, tmp_path):
    file, _ = make_package(
        home / "1" / "model",
        home / "base",
        tmp_path,
        counter=1,
        expires="2099-01-31T00:00:00Z",
    )
    assert file.read_bytes() == (home / "1.aglmdelta").read_bytes()


def test_updates_replace_and_undo_returns_once(apply, tmp_path):
    first, _ = apply(1)
    second, _ = apply(2)
    assert first.digest != second.digest
    with pytest.raises(UsageError, match="has the counter 1, and 2 was applied"):
        apply(1)
    assert undo_package(tmp_path / "out").current == first
    assert open_base(tmp_path / "out").digest == first.digest
    with pytest.raises(UsageError, match="nothing to undo"):
        undo_package(tmp_path / "out")
    with pytest.raises(UsageError, match="has the counter 1, and 2 was applied"):
        apply(1)
    assert apply(2) == (second, True)


def test_two_packages_do_not_share_a_counter(home, apply, tmp_path):
    apply(2)
    other = tmp_path / "other"
    file, _ = make_package(
        home / "1" / "model", home / "base", other, counter=2, expires="2099-01-31T00:00:00Z"
    )
    with pytest.raises(UsageError, match="has the counter 2, and so had another package"):
        apply_package(application(file, home / "base", tmp_path / "out"))


def test_undo_of_the_first_update_removes_the_model(apply, tmp_path):
    with pytest.raises(UsageError, match="no package was applied here"):
        undo_package(tmp_path / "out")
    apply(1)
    assert undo_package(tmp_path / "out").current is None
    assert not (tmp_path / "out").exists()
    assert apply(1)[1]


def test_a_damaged_former_model_is_not_put_back(apply, tmp_path):
    apply(1)
    second, _ = apply(2)
    (tmp_path / "out.updates" / "previous" / "base.json").write_text("{}")
    with pytest.raises(DamagedArtifactError, match="its content has changed"):
        undo_package(tmp_path / "out")
    assert open_base(tmp_path / "out").digest == second.digest


def test_a_result_that_was_changed_is_written_again(apply, tmp_path):
    update, _ = apply(1)
    (tmp_path / "out" / "base.json").write_text("{}")
    assert apply(1) == (update, True)
    assert open_base(tmp_path / "out").digest == update.digest


@pytest.mark.parametrize("change", ["file", "folder"])
def test_a_result_that_was_changed_is_not_what_undo_returns_to(apply, tmp_path, change):
    first, _ = apply(1)
    apply(2)
    if change == "file":
        (tmp_path / "out" / "base.json").write_text("{}")
    else:
        shutil.rmtree(tmp_path / "out")
    apply(2)
    assert undo_package(tmp_path / "out").current == first
    assert open_base(tmp_path / "out").digest == first.digest


def test_another_base_is_refused(home, apply, tmp_path):
    other = float_base(tmp_path / "other")
    (other / "tokenizer_config.json").write_text('{"pad_token": "w9"}')
    with pytest.raises(UsageError, match="is for another base"):
        apply_package(application(home / "1.aglmdelta", other, tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_an_adapter_is_applied_to_a_graph_that_was_exported_from_its_base(home, apply, tmp_path):
    """A device that runs the graph has no checkpoint; an update between models needs one."""
    for name, digest in (("graph", open_base(home / "base").digest), ("other", "ab" * 32)):
        (tmp_path / name).mkdir()
        model = onnx.ModelProto.FromString(tiny_network())
        onnx.helper.set_model_props(model, {BASE_KEY: digest})
        onnx.save(model, tmp_path / name / "model.onnx")
    package = home / "1.aglmdelta"
    update, _ = apply_package(application(package, tmp_path / "graph", tmp_path / "beside"))
    assert apply(1)[0].digest == update.digest == open_base(tmp_path / "beside").digest
    for graph, merge in (("other", False), ("graph", True)):
        with pytest.raises(UsageError, match="is for another base"):
            apply_package(application(package, tmp_path / graph, tmp_path / "no", merge=merge))


def test_another_series_in_the_same_folder_is_refused(apply):
    apply(1)
    with pytest.raises(UsageError, match="belongs to the updates 'other'"):
        apply(3)


def test_an_expired_package_is_refused(apply, tmp_path):
    late = datetime.datetime(2099, 1, 31, tzinfo=datetime.UTC)
    with pytest.raises(UsageError, match="expired on 2099-01-31T00:00:00Z"):
        apply(1, now=late)
    apply(1, now=late - datetime.timedelta(seconds=1))


def test_a_folder_without_a_package_is_refused(home, tmp_path):
    with pytest.raises(UsageError, match=r"holds no update package: it has no update\.aglmdelta"):
        sign_package(home / "base", write_keys(tmp_path)[0], tmp_path / "signed.aglmdelta")


def test_a_folder_of_something_else_is_not_replaced(apply, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("mine")
    with pytest.raises(UsageError, match="is not the result of a package"):
        apply(1)
    assert (tmp_path / "out" / "mine").read_text() == "mine"


def test_signatures_are_required_where_a_key_or_the_policy_asks(home, apply, tmp_path, monkeypatch):
    private, public = write_keys(tmp_path)
    _, other = write_keys(tmp_path, "other")
    with pytest.raises(DamagedArtifactError, match="is not signed"):
        apply(1, key=public)
    signed = sign_package(home / "1.aglmdelta", private, tmp_path / "signed.aglmdelta")
    with pytest.raises(DamagedArtifactError, match="does not match"):
        apply_package(application(signed, home / "base", tmp_path / "out", key=other))
    monkeypatch.setenv(REQUIRE_SIGNATURES, "1")
    with pytest.raises(UsageError, match="there is no public key"):
        apply(1)
    update, _ = apply_package(application(signed, home / "base", tmp_path / "out", key=public))
    assert update.signer is not None


@pytest.mark.parametrize("encoding", ["int8", "float16", "exact"])
def test_a_reader_of_a_hundred_lines_ends_in_the_announced_digest(home, tmp_path, encoding):
    assert len(READER.read_text().splitlines()) <= 100
    file, output = make_package(home / "1" / "model", home / "base", tmp_path, encoding=encoding)
    command = [sys.executable, READER, file, home / "base", tmp_path / "read"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == output.summary["result"]
    assert open_base(tmp_path / "read").digest == output.summary["result"]
    assert json.loads((tmp_path / "read" / "base.json").read_text())["artifact"] is None


@pytest.mark.parametrize("encoding", ["int8", "float16"])
def test_kernels_of_convolutions_are_rounded_like_matrices(home, tmp_path, encoding):
    adapter = shutil.copytree(home / "1" / "model", tmp_path / "adapter" / "model")
    generator = np.random.default_rng(0)
    shapes = {"A": (4, 6, 3, 3), "B": (8, 4, 1, 1)}
    kernels = {
        f"base_model.model.vision.conv.lora_{part}.weight": generator.normal(size=shape)
        for part, shape in shapes.items()
    }
    values = safetensors.numpy.load_file(adapter / ADAPTER_WEIGHTS) | {
        name: kernel.astype(np.float32) for name, kernel in kernels.items()
    }
    safetensors.numpy.save_file(values, adapter / ADAPTER_WEIGHTS, metadata={"format": "pt"})
    file, output = make_package(adapter, home / "base", tmp_path, encoding=encoding)
    command = [sys.executable, READER, file, home / "base", tmp_path / "read"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == output.summary["result"]
    read = safetensors.numpy.load_file(tmp_path / "read" / ADAPTER_WEIGHTS)
    for name, kernel in kernels.items():
        assert read[name].shape == kernel.shape
        assert np.abs(read[name] - kernel).max() < 0.02
