"""The commands of the documentation, exactly as printed: files are written, installed and run.

A page is followed in an empty folder:

- A code block with a title that is a file name is a file.
- ``<!-- stand-ins: llm texts -->`` names small models and data that stand for the reader's own
  (``tests/support/stand_ins.py``).
- The entry points of a ``pyproject.toml`` become a dist-info folder on PYTHONPATH, which stands for
  ``pip install -e .``.
- The lines of every block behind the comment ``<!-- tested -->`` are run in order. Other blocks are
  checked for their form alone (``test_docs.py``).
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
from subprocess import CompletedProcess

import pytest

from tests.support.cli import cli
from tests.support.stand_ins import STAND_INS

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
EXTENDING = ROOT / "docs" / "extending"
"""Pages that build a package of their own: the tests below check what their commands print."""
FILE_BLOCK = re.compile(r'^```\w* title="([\w.]+)"\n(.*?)^```', re.MULTILINE | re.DOTALL)
TESTED_BLOCK = re.compile(r"^<!-- tested -->\n```\w*\n(.*?)^```", re.MULTILINE | re.DOTALL)
STAND_IN_COMMENT = re.compile(r"<!-- stand-ins: ([\w ]+) -->")
TESTED = [
    page for page in PAGES if TESTED_BLOCK.search(page.read_text()) and "zh" not in page.parts
]


def write_files(page: Path, folder: Path) -> None:
    """Write the stand-ins that a page names, and every code block that is a file."""
    for names in STAND_IN_COMMENT.findall(page.read_text()):
        for name in names.split():
            STAND_INS[name](folder)
    for title, text in FILE_BLOCK.findall(page.read_text()):
        (folder / title).write_text(text)


def install(folder: Path) -> None:
    """Write the dist-info folder of the package that pyproject.toml describes, if there is one."""
    if not (folder / "pyproject.toml").is_file():
        return
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
    """Run the tested lines of a page and return their outputs; the first failure ends the test."""
    outputs = {}
    for block in TESTED_BLOCK.findall(page.read_text()):
        for line in block.replace("\\\n", " ").splitlines():
            program, *arguments = [expand(word, folder) for word in shlex.split(line)]
            done = run_program(program, arguments, folder)
            assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
            outputs[line] = done.stdout
    return outputs


def run_program(program: str, arguments: list[str], folder: Path) -> CompletedProcess[str]:
    """Run a command in a folder, whose package, if there is one, is on PYTHONPATH."""
    if program == "autoglm-compress" and not (folder / "pyproject.toml").is_file():
        return cli(*arguments, cwd=folder)
    start = {"python": [sys.executable], "autoglm-compress": [sys.executable, "-m", "cli"]}
    search_path = [str(folder), str(ROOT), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, search_path))}
    return subprocess.run(
        [*start[program], *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


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


def follow(page: Path, folder: Path) -> dict[str, str]:
    """Follow a page in an empty folder and return the outputs of its commands."""
    write_files(page, folder)
    install(folder)
    return run_commands(page, folder)


@pytest.mark.parametrize(
    "page",
    [page for page in TESTED if EXTENDING not in page.parents],
    ids=lambda page: str(page.relative_to(ROOT)),
)
def test_every_command_that_a_page_marks_as_tested_succeeds(page: Path, tmp_path: Path) -> None:
    assert follow(page, tmp_path)


def test_the_recipe_of_a_pass(tmp_path: Path) -> None:
    outputs = follow(EXTENDING / "pass.md", tmp_path)
    assert "smallest magnitudes first" in outputs["autoglm-compress passes explain sparsify"]
    (manifest,) = tmp_path.glob("artifacts/sparsify-*/manifest.json")
    assert json.loads(manifest.read_text())["summary"]["sparsity"] == 0.6


def test_the_recipe_of_a_data_source(tmp_path: Path) -> None:
    outputs = follow(EXTENDING / "data-source.md", tmp_path)
    assert "relative to pipeline.yaml" in outputs["autoglm-compress passes explain npz"]
    assert metrics(tmp_path, "train")["top1"] > 0.9


def test_the_recipe_of_a_metric(tmp_path: Path) -> None:
    outputs = follow(EXTENDING / "metric.md", tmp_path)
    assert "two most probable classes" in outputs["autoglm-compress passes explain top2"]
    measured = metrics(tmp_path, "train")
    assert measured["top1"] <= measured["top2"] <= 1
    assert measured["rank-shift"] == 0
    (report,) = tmp_path.glob("artifacts/runs/*/run.json")
    assert "top2" in report.read_text()


def test_the_recipe_of_a_model_family(tmp_path: Path) -> None:
    outputs = follow(EXTENDING / "model-family.md", tmp_path)
    assert "mlp" in outputs["autoglm-compress show mlp:large"]
    whole, half = metrics(tmp_path, "train"), metrics(tmp_path, "prune")
    assert half["parameters"] < 0.6 * whole["parameters"]
    assert metrics(tmp_path, "export-onnx")["latency_p50_ms"] > 0


def test_the_recipe_of_a_format(tmp_path: Path) -> None:
    outputs = follow(EXTENDING / "format.md", tmp_path)
    assert "centroids" in outputs["autoglm-compress show model"]
    half = metrics(tmp_path, "half-centroids")
    assert half["top1"] > 0.9
    assert half["latency_p50_ms"] > 0


@pytest.mark.parametrize("page", sorted(EXTENDING.glob("*.md")), ids=lambda page: page.stem)
def test_every_page_about_extending_is_followed_by_a_test(page: Path) -> None:
    titles = {title for title, _ in FILE_BLOCK.findall(page.read_text())}
    assert page.stem == "README" or "pyproject.toml" in titles
    followed = re.findall(r'EXTENDING / "([\w-]+)\.md"', Path(__file__).read_text())
    assert page.stem == "README" or page.stem in followed


def test_every_recipe_with_a_whole_pipeline_is_followed_by_a_test() -> None:
    recipes = (ROOT / "docs" / "recipes").glob("*.md")
    whole = [page for page in recipes if 'title="pipeline.yaml"' in page.read_text()]
    assert len(whole) >= 7
    assert [page.name for page in whole if page not in TESTED] == []
