"""``model: {python: …}`` in pipeline.yaml: checked before a run, stored with its code."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from compressor.artifacts.store import Store
from compressor.config.permission import CODE_VARIABLE
from compressor.data.contract import SourceContext
from compressor.engine.plan.pipeline import load_pipeline
from compressor.engine.plan.plan import Plan
from compressor.engine.plan.planner import check_pipeline, make_plan
from compressor.errors import ConfigError
from tests.support.cli import cli
from tests.support.own_modules import (
    IMAGE_INPUT,
    TOKEN_INPUTS,
    write_own_files,
    write_own_pipeline,
)

NET = f"{{python: net.py:build, inputs: {IMAGE_INPUT}, outputs: [logits, pooled]"


def plan(file: Path, *, allow_code: bool = True) -> Plan:
    sources = SourceContext(file.parent, allow_code=allow_code)
    return make_plan(load_pipeline(file), Store(file.parent / "artifacts"), sources)


def problems(folder: Path, model: str, *, allow_code: bool = True) -> str:
    file = write_own_pipeline(write_own_files(folder), model)
    with pytest.raises(ConfigError) as error:
        plan(file, allow_code=allow_code)
    return str(error.value)


def test_a_plan_without_permission_names_the_option_and_runs_nothing(tmp_path: Path) -> None:
    folder = write_own_files(tmp_path)
    mark = tmp_path / "ran"
    (folder / "layers.py").write_text(f"open({str(mark)!r}, 'w')\n")
    file = write_own_pipeline(folder, NET + "}")
    with pytest.raises(ConfigError, match=r"pipeline.yaml:3: model.python: runs net.py:build"):
        plan(file, allow_code=False)
    assert not mark.exists()


def test_the_id_covers_code_arguments_and_weights(tmp_path: Path) -> None:
    folder = write_own_files(tmp_path)
    ids = [
        plan(write_own_pipeline(folder, model)).steps[0].artifact_id
        for model in (NET + "}", NET + ", arguments: {width: 4}}")
    ]
    (folder / "layers.py").write_text((folder / "layers.py").read_text() + "# changed\n")
    file = write_own_pipeline(folder, NET + "}")
    ids.append(plan(file).steps[0].artifact_id)
    assert len(set(ids)) == 3
    (folder / "unused.py").write_text("")
    assert plan(file).steps[0].artifact_id == ids[-1]


def test_every_tensor_that_does_not_fit_is_named(tmp_path: Path) -> None:
    folder = write_own_files(tmp_path)
    weights = {"head.weight": torch.zeros(5, 8), "head.bias": torch.zeros(3), "old": torch.zeros(1)}
    for name in ("w.safetensors", "w.pt"):
        if name == "w.pt":
            torch.save({"state_dict": weights}, folder / name)
        else:
            save_file(weights, folder / name)
        text = problems(folder, NET + f", weights: {name}}}")
        assert "model.weights" in text
        assert "head.weight: float32 [5, 8] in the file, float32 [3, 8] in the module" in text
        assert "missing: stem.weight float32 [8, 3, 3, 3]" in text
        assert "unexpected: old float32 [1]" in text


def test_a_pickle_that_is_more_than_tensors_is_refused(tmp_path: Path) -> None:
    torch.save({"model": torch.nn.Linear(1, 1)}, tmp_path / "w.pt")
    text = problems(tmp_path, NET + ", weights: w.pt}")
    assert "model.weights" in text
    assert "cannot be read as tensors alone" in text


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (f"{{python: absent.py:build, inputs: {IMAGE_INPUT}}}", "absent.py does not exist"),
        (f"{{python: net.py:make, inputs: {IMAGE_INPUT}}}", "no function or class 'make'"),
        (f"{{python: net.py, inputs: {IMAGE_INPUT}}}", "names no function"),
        ("{python: 'net.py:build'}", "needs `inputs`"),
        ("{python: 'net.py:build', inputs: {image: {shape: [1, 3]}}}", "name it `batch`"),
        (f"{{python: tagger.py:Tagger, inputs: {IMAGE_INPUT}}}", "`forward` takes tokens, mask"),
        (NET + ", preset: small}", "`preset` goes with `family`, not with `python`"),
        (NET + ", timm: resnet18}", "given are python and timm"),
        (NET + ", weights: absent.pt}", "absent.pt does not exist"),
        (NET + ", arguments: {depth: 3}}", "unexpected keyword argument 'depth'"),
        ("{path: '.', weights: w.pt}", "`weights` goes with `python` or `timm` or `torchvision`"),
    ],
    ids=lambda value: value[:30] if value[0] != "{" else "",
)
def test_wrong_fields_have_a_place_and_a_reason(tmp_path: Path, model: str, expected: str) -> None:
    text = problems(tmp_path, model)
    assert "pipeline.yaml:3" in text
    assert expected in text


def test_keyword_modules_are_planned(tmp_path: Path) -> None:
    model = f"{{python: tagger.py:Tagger, inputs: {TOKEN_INPUTS}}}"
    file = write_own_pipeline(write_own_files(tmp_path), model)
    sources = SourceContext(tmp_path, allow_code=True)
    assert check_pipeline(load_pipeline(file), sources).steps == ("source",)


def test_an_artifact_holds_its_code_and_needs_the_permission_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_own_files(tmp_path)
    np.savez(folder / "set.npz", image=np.ones((8, 3, 16, 16), np.float32), label=np.arange(8) % 3)
    data = "data: {set: {source: arrays, path: set.npz}}\n"
    evaluate = "evaluate: {accuracy: {data: set, metrics: [top1]}}\n"
    weights = folder / "w.pt"
    monkeypatch.setenv(CODE_VARIABLE, "1")
    write_state(folder, weights)
    monkeypatch.setenv(CODE_VARIABLE, "")
    model = NET + ", weights: w.pt}"
    file = write_own_pipeline(folder, model, data + evaluate)
    built = cli("run", file, "-o", folder / "artifacts", "--allow-code", cwd=folder)
    assert built.returncode == 0, built.stderr
    artifact = next((folder / "artifacts").glob("source-*"))
    for name in ("net.py", "layers.py"):
        (folder / name).unlink()
    shown = cli("show", artifact)
    assert shown.returncode == 0, shown.stderr
    again = "version: 1\nname: again\n" + data + evaluate
    (folder / "again.yaml").write_text(again + f"model: {{path: '{artifact}'}}\n")
    refused = cli("eval", artifact, "-p", folder / "again.yaml")
    assert refused.returncode == 2
    assert "--allow-code" in refused.stderr
    measured = cli("eval", artifact, "-p", folder / "again.yaml", "--allow-code")
    assert measured.returncode == 0, measured.stderr
    planned = cli("plan", folder / "again.yaml")
    assert planned.returncode == 2
    assert "again.yaml" in planned.stderr
    assert "--allow-code" in planned.stderr


def write_state(folder: Path, file: Path) -> None:
    from compressor.models.families.module.source_code import call_function, collect_code

    name, code = collect_code(folder / "net.py")
    torch.save(call_function(code, f"{name}:build", {}).state_dict(), file)
