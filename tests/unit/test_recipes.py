"""The recipes of docs/extending, exactly as printed: files are written, installed and run.

A code block with a title is a file. The entry points of pyproject.toml become a dist-info folder on
PYTHONPATH, which stands for ``pip install -e .``. The lines of untitled blocks are run in order.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
RECIPES = ROOT / "docs" / "extending"
BLOCK = re.compile(r'^```(\w*)(?: title="([^"]+)")?\n(.*?)^```', re.MULTILINE | re.DOTALL)


def write_files(page: Path, folder: Path) -> None:
    """Write every titled code block of a page."""
    for _, title, text in BLOCK.findall(page.read_text()):
        if title:
            (folder / title).write_text(text)


def install(folder: Path) -> None:
    """Write the dist-info folder of the package that pyproject.toml describes."""
    project = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
    dist_info = folder / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    dist_info.mkdir()
    (dist_info / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"
    )
    lines = []
    for group, points in project["entry-points"].items():
        lines += [f"[{group}]", *(f"{name} = {value}" for name, value in points.items())]
    (dist_info / "entry_points.txt").write_text("\n".join(lines) + "\n")


def run_commands(page: Path, folder: Path) -> dict[str, str]:
    """Run the shell lines of a page and return their outputs; the first failure ends the test."""
    search_path = [str(folder), str(ROOT), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, search_path))}
    outputs = {}
    for language, title, text in BLOCK.findall(page.read_text()):
        for line in () if language or title else text.splitlines():
            if line.startswith("pip install"):
                continue
            program, *arguments = [expand(word, folder) for word in shlex.split(line)]
            start = {"python": [sys.executable], "autoglm-compress": [sys.executable, "-m", "cli"]}
            done = subprocess.run(
                [*start[program], *arguments],
                cwd=folder,
                env=environment,
                capture_output=True,
                text=True,
                check=False,
            )
            assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
            outputs[line] = done.stdout
    return outputs


def expand(word: str, folder: Path) -> str:
    """Replace ``<id>`` in the path of an artifact by its id."""
    if "<id>" not in word:
        return word
    (path,) = folder.glob(word.replace("<id>", "*"))
    return str(path.relative_to(folder))


def metrics(folder: Path, name: str) -> dict[str, float]:
    """Return the metrics in the manifest of the artifact of a pass."""
    (manifest,) = folder.glob(f"artifacts/{name}-*/manifest.json")
    return {row["name"]: row["value"] for row in json.loads(manifest.read_text())["metrics"]}


def follow(name: str, folder: Path) -> dict[str, str]:
    """Follow one recipe in an empty folder and return the outputs of its commands."""
    page = RECIPES / f"{name}.md"
    write_files(page, folder)
    install(folder)
    return run_commands(page, folder)


def test_the_recipe_of_a_pass(tmp_path: Path) -> None:
    outputs = follow("pass", tmp_path)
    assert "smallest magnitudes first" in outputs["autoglm-compress passes explain sparsify"]
    (manifest,) = tmp_path.glob("artifacts/sparsify-*/manifest.json")
    assert json.loads(manifest.read_text())["summary"]["sparsity"] == 0.6


def test_the_recipe_of_a_data_source(tmp_path: Path) -> None:
    outputs = follow("data-source", tmp_path)
    assert "relative to pipeline.yaml" in outputs["autoglm-compress passes explain npz"]
    assert metrics(tmp_path, "train")["top1"] > 0.9


def test_the_recipe_of_a_model_family(tmp_path: Path) -> None:
    outputs = follow("model-family", tmp_path)
    assert "mlp" in outputs["autoglm-compress show mlp:large"]
    whole, half = metrics(tmp_path, "train"), metrics(tmp_path, "prune")
    assert half["parameters"] < 0.6 * whole["parameters"]
    assert metrics(tmp_path, "export-onnx")["latency_p50_ms"] > 0


def test_the_recipe_of_a_format(tmp_path: Path) -> None:
    outputs = follow("format", tmp_path)
    assert "centroids" in outputs["autoglm-compress show model"]
    half = metrics(tmp_path, "half-centroids")
    assert half["top1"] > 0.9
    assert half["latency_p50_ms"] > 0


@pytest.mark.parametrize("page", sorted(RECIPES.glob("*.md")), ids=lambda page: page.stem)
def test_every_recipe_is_followed_by_a_test(page: Path) -> None:
    titles = {title for _, title, _ in BLOCK.findall(page.read_text()) if title}
    assert page.stem == "README" or "pyproject.toml" in titles
    followed = re.findall(r'follow\("([\w-]+)"', Path(__file__).read_text())
    assert page.stem == "README" or page.stem in followed
