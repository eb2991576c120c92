"""A format and a pass of another package, in one file, go through every command.

``tests/plugins/linear.py`` is the whole plugin. Nothing else in the repository refers to it.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests.support.cli import cli

SAMPLES = """
import numpy as np

def load():
    x = np.random.default_rng(1).normal(size=(64, 6)).astype(np.float32)
    return {"x": x, "label": (x[:, 0] > x[:, 1]).astype(np.int64)}
"""
PIPELINE = """
version: 1
name: linear
model: {path: model}
data:
  test: {source: python, path: samples.py}
evaluate:
  accuracy: {data: test, metrics: [top1, kl]}
  latency: {repeats: 8, warmup: 1}
passes:
  - {type: round-linear, name: rounded, decimals: 0}
gates:
  - {metric: top1, max_drop: 0.5, step: rounded, against: source}
  - {metric: size_bytes, max_ratio: 1.0, step: rounded, against: source}
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a linear model, its pipeline, and a finished run in ``store``."""
    home = tmp_path_factory.mktemp("linear")
    (home / "model").mkdir()
    weight = np.random.default_rng(0).normal(size=(2, 6)).astype(np.float32)
    weight[1, 0] += 3
    weight[0, 1] += 3
    np.savez(home / "model" / "linear.npz", weight=weight, bias=np.zeros(2, np.float32))
    (home / "samples.py").write_text(SAMPLES)
    (home / "pipeline.yaml").write_text(PIPELINE)
    done = cli("run", "pipeline.yaml", "-o", "store", "--allow-code", "--json", cwd=home)
    assert done.returncode == 0, done.stderr
    return home


def artifact(home: Path, name: str) -> Path:
    (folder,) = (home / "store").glob(f"{name}-*")
    return folder


def test_show_recognizes_the_file_and_the_folder(home):
    for path in ("model", "model/linear.npz"):
        report = json.loads(cli("show", path, "--json", cwd=home).stdout)
        assert (report["format"], report["runtime"]) == ("linear", "numpy")
        assert ["features", "6"] in report["details"]
        suitable = {row["name"]: row["suitable"] for row in report["passes"]}
        assert suitable["round-linear"]
        assert not suitable["prune"]


def test_accuracy_latency_and_cost_are_measured(home):
    manifest = json.loads((artifact(home, "round-linear") / "manifest.json").read_text())
    metrics = {metric["name"]: metric["value"] for metric in manifest["metrics"]}
    assert manifest["kind"] == "linear"
    assert metrics["top1"] > 0.7
    assert metrics["kl"] > 0
    assert metrics["latency_p50_ms"] > 0
    assert metrics["parameters"] == 14
    assert metrics["macs"] == 12


def test_the_gates_and_the_reports_include_it(home):
    (run,) = (folder for folder in (home / "store" / "runs").iterdir() if folder.is_dir())
    report = (run / "report.md").read_text()
    assert "rounded" in report
    assert "linear" in report
    assert (artifact(home, "round-linear") / "report.html").is_file()
    done = cli("gate", "store", "--against", "store", cwd=home)
    assert done.returncode == 0, done.stderr


def test_two_of_them_are_compared_in_weights_and_layers(home):
    pair = (artifact(home, "source"), artifact(home, "round-linear"))
    done = cli("compare", *pair, "--tensors", "--json", cwd=home)
    tensors = {row["name"]: row for row in json.loads(done.stdout)["tensors"]}
    assert tensors["bias"]["equal"]
    assert tensors["weight"]["snr_db"] > 0
    done = cli("compare", *pair, "-p", "pipeline.yaml", "--allow-code", "--json", cwd=home)
    (layer,) = json.loads(done.stdout)["layers"]["layers"]
    assert layer["layer"] == "linear"


def test_the_passes_of_others_refuse_it_by_name(home):
    done = cli("pass", "toy", "model", cwd=home)
    assert done.returncode == 2
    assert "toy cannot follow the source model: it reads onnx, not linear" in done.stderr


def test_what_it_cannot_do_is_refused_in_one_sentence(home):
    done = cli("generate", "model", "--prompt", "hello", cwd=home)
    assert done.returncode == 2
    assert "holds no model that generates text" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_file_with_nan_is_refused_before_it_is_stored(home, tmp_path):
    (tmp_path / "model").mkdir()
    weight = np.full((2, 6), np.nan, np.float32)
    np.savez(tmp_path / "model" / "linear.npz", weight=weight, bias=np.zeros(2, np.float32))
    for name in ("samples.py", "pipeline.yaml"):
        (tmp_path / name).write_text((home / name).read_text())
    done = cli("run", "pipeline.yaml", "-o", "store", "--allow-code", cwd=tmp_path)
    assert done.returncode == 1
    assert "NaN or infinity in weight" in done.stderr
    assert not list((tmp_path / "store").glob("source-*"))


def test_the_plugin_is_one_file_of_less_than_a_hundred_lines():
    plugin = Path(__file__).parents[1] / "plugins" / "linear.py"
    assert len(plugin.read_text().splitlines()) < 100
