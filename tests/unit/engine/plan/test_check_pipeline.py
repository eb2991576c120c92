"""Checks without a store: every problem of data and model at once, and nothing is hashed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models

from compressor.data.contract import SourceContext
from compressor.engine.plan.pipeline import load_pipeline
from compressor.engine.plan.planner import check_pipeline
from compressor.errors import ConfigError
from tests.support.checkpoints import FAMILY, write_sparse_checkpoint

SIZES = {
    "hidden_size": 4096,
    "intermediate_size": 13696,
    "num_hidden_layers": 40,
    "num_attention_heads": 32,
    "head_dim": 128,
    "vocab_size": 151552,
}
PIPELINE = """\
version: 1
name: nine
model: {path: model, measure: false}
data:
  calibration: {source: text, path: TEXT, tokenizer: model}
  parity: {source: text, path: text.txt, tokenizer: model}
passes:
  - {type: awq, group_size: GROUP, format: compressed-tensors}
  - {type: export-onnx, parity: {data: parity}}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tree = FAMILY.presets["tiny-glm4"].tree | SIZES
    write_sparse_checkpoint(tree, tmp_path / "model")
    tokenizer = Tokenizer(models.WordLevel({"a": 0, "b": 1}, unk_token="a"))
    tokenizer.save(str(tmp_path / "model" / "tokenizer.json"))
    (tmp_path / "text.txt").write_text("a b " * 1000)
    return tmp_path


def check(folder: Path, text: str = "text.txt", group: int = 128) -> tuple[str, ...]:
    file = folder / "pipeline.yaml"
    file.write_text(PIPELINE.replace("TEXT", text).replace("GROUP", str(group)))
    return check_pipeline(load_pipeline(file), SourceContext(folder)).steps


def test_nine_billion_parameters_are_checked_from_headers_alone(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> str:
        raise AssertionError("a digest was computed")

    monkeypatch.setattr("compressor.engine.plan.source_model.digest_file", refuse)
    monkeypatch.setattr("calibration.sources.text.digest_file", refuse)
    assert check(folder) == ("source", "awq", "export-onnx")


def test_problems_of_data_and_of_the_model_are_listed_together(folder: Path) -> None:
    with pytest.raises(ConfigError) as raised:
        check(folder, text="missing.txt", group=96)
    problems = [problem.what for problem in raised.value.problems]
    assert len(problems) == 2
    assert "missing.txt matches no file" in problems[0]
    assert "4096 inputs are no multiple of the group size 96" in problems[1]


def test_a_tokenizer_beyond_the_embedding_is_refused_wherever_it_is_used(folder: Path) -> None:
    tree = json.loads((folder / "model" / "tokenizer.json").read_text())
    tree["model"]["vocab"]["c"] = 151552
    (folder / "model" / "tokenizer.json").write_text(json.dumps(tree))
    with pytest.raises(ConfigError) as raised:
        check(folder)
    assert len(raised.value.problems) == 2
    assert all("151552" in problem.what for problem in raised.value.problems)
