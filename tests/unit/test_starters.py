"""Every starter pipeline runs once its placeholders are filled, here with tiny models and data."""

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml

from compressor.engine.plan.starter import starters
from tests.support.cli import cli
from tests.support.example_files import write_stand_in
from tests.support.own_modules import write_own_files
from tests.support.tiny_files import draw_pictures, tiny_network

ROOT = Path(__file__).parents[2]
Edit = tuple[str, str]
"""A pattern in the pipeline, and what a user with a small model and few samples puts there."""
_WRITE_WEIGHTS = """\
from safetensors.torch import save_file
from my_model import build
save_file(build().state_dict(), "weights.safetensors")
"""


def own_images(folder: Path) -> list[Edit]:
    for split in ("train", "test"):
        draw_pictures(folder / "data" / split, 40)
    return [
        ("image_size: 64", "image_size: 16"),
        ("num_classes: 10", "num_classes: 2"),
        ("preset: small", "preset: tiny"),
        ("steps: 500", "steps: 40"),
    ]


def own_module(folder: Path) -> list[Edit]:
    write_own_files(folder)
    (folder / "net.py").rename(folder / "my_model.py")
    subprocess.run([sys.executable, "-c", _WRITE_WEIGHTS], cwd=folder, check=True)
    images = np.random.default_rng(0).normal(size=(64, 3, 16, 16)).astype(np.float32)
    for name in ("calibration", "test"):
        np.savez(folder / f"{name}.npz", x=images)
    inputs, outputs = "image: {shape: [batch, 3, 224, 224]", "outputs: [logits]"
    return [
        (re.escape(inputs), "x: {shape: [batch, 3, 16, 16]"),
        (re.escape(outputs), "outputs: [logits, vector]"),
    ]


def vision_language_model(folder: Path) -> list[Edit]:
    write_stand_in("glm4v", folder, samples=32)
    (folder / "model").rename(folder / "checkpoint")
    conversations = folder / "conversations"
    (conversations / "calibration.jsonl").rename(folder / "calibration.jsonl")
    (conversations / "test.jsonl").rename(folder / "evaluation.jsonl")
    return [("max_ratio: 1.1", "max_ratio: 1.5")]


def onnx_file(folder: Path) -> list[Edit]:
    (folder / "model.onnx").write_bytes(tiny_network())
    x = np.random.default_rng(0).normal(size=(64, 16)).astype(np.float32)
    np.savez(folder / "samples.npz", x=x)
    profile = re.escape(
        "image: {min: [1, 3, 224, 224], opt: [1, 3, 224, 224], max: [8, 3, 224, 224]}"
    )
    return [(profile, "x: {min: [1, 16], opt: [1, 16], max: [8, 16]}")]


def onnx_integers(folder: Path) -> list[Edit]:
    (folder / "model.onnx").write_bytes(tiny_network())
    for number, name in enumerate(("calibration", "test")):
        x = np.random.default_rng(number).normal(size=(64, 16)).astype(np.float32)
        np.savez(folder / f"{name}.npz", x=x)
    return [("max_ratio: 0.6", "max_ratio: 1.5")]


FILL: dict[str, Callable[[Path], list[Edit]]] = {
    "images": own_images,
    "module": own_module,
    "vlm-int4": vision_language_model,
    "onnx-engine": onnx_file,
    "onnx-int8": onnx_integers,
}

RECIPES = {"encoder-int8": "encoder-int8-onnxruntime.md", "llm-int4": "llm-int4-onnx.md"}
"""Starters that are the pipelines of recipes, which ``test_recipes.py`` follows."""


def test_every_starter_is_tried() -> None:
    # The phone starter needs no files; `make demo` runs a longer form of it.
    assert {*FILL, *RECIPES, "phone"} == set(starters())


@pytest.mark.parametrize("name", RECIPES)
def test_a_starter_is_the_pipeline_of_a_recipe_which_is_run(tmp_path: Path, name: str) -> None:
    assert cli("init", tmp_path, "--starter", name).returncode == 0
    started = yaml.safe_load((tmp_path / "pipeline.yaml").read_text())
    page = (ROOT / "docs" / "recipes" / RECIPES[name]).read_text()
    block = re.search(r'title="pipeline.yaml"\n(.*?)```', page, re.DOTALL)
    assert block
    recipe = yaml.safe_load(block[1])
    for section in ("model", "evaluate", "passes", "gates"):
        assert started[section] == recipe[section]
    assert {name: data["source"] for name, data in started["data"].items()} == {
        name: data["source"] for name, data in recipe["data"].items()
    }


@pytest.mark.parametrize("name", FILL)
def test_a_starter_runs(tmp_path: Path, name: str) -> None:
    written = cli("init", tmp_path, "--starter", name)
    assert written.returncode == 0, written.stderr
    assert written.stdout.startswith("set line "), "the command lists what is missing"
    file = tmp_path / "pipeline.yaml"
    text = file.read_text()
    for pattern, value in FILL[name](tmp_path):
        text, count = re.subn(pattern, value, text)
        assert count, pattern
    file.write_text(text)
    done = cli("run", file, "--allow-code", "-o", tmp_path / "artifacts")
    assert done.returncode == 0, done.stderr
    assert "deliverables, against" in done.stdout


def test_the_phone_starter_has_a_plan(tmp_path: Path) -> None:
    assert cli("init", tmp_path, "--starter", "phone").returncode == 0
    done = cli("validate", tmp_path / "pipeline.yaml")
    assert done.returncode == 0, done.stderr


def test_the_starters_are_listed_with_what_they_make() -> None:
    listed = cli("init", "--starter", "list")
    assert listed.returncode == 0
    for name, summary in starters().items():
        assert f"{name} " in listed.stdout
        assert summary in listed.stdout


def test_an_unknown_starter_is_refused_with_the_list(tmp_path: Path) -> None:
    done = cli("init", tmp_path, "--starter", "int4")
    assert done.returncode == 2
    assert "llm-int4" in done.stderr
    assert not (tmp_path / "pipeline.yaml").exists()
