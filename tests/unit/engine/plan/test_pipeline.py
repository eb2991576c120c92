from __future__ import annotations

from pathlib import Path

import pytest

from compressor.config.document import parse_document
from compressor.data.contract import SourceContext
from compressor.engine.plan.pipeline import (
    draft_pipeline,
    load_pipeline,
    pipeline_from_document,
)
from compressor.engine.plan.planner import check_pipeline
from compressor.errors import ConfigError, UsageError

VALID = """\
version: 1
name: toy
model: {path: model}
passes:
  - {type: toy, name: first}
  - {type: toy, name: second, from: source}
"""


def problems(text: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        pipeline_from_document(parse_document(text.encode(), Path("p.yaml")))
    return [str(problem) for problem in caught.value.problems]


def test_unknown_keys_do_not_hide_what_else_is_wrong(tmp_path: Path) -> None:
    file = tmp_path / "pipeline.yaml"
    file.write_text(
        "version: 1\nname: toy\nmodle: 3\nmodel: {path: nowhere}\n"
        "data: {d: {source: arrays, path: missing.npz, sed: 1}}\n"
        "passes: [{type: toy, rouds: 3}, {type: toy, name: b, from: c}]\n"
    )
    with pytest.raises(ConfigError) as caught:
        check_pipeline(draft_pipeline(file), SourceContext(tmp_path))
    text = str(caught.value)
    for part in ("'modle'", "nowhere does not exist", "'sed'", "missing.npz", "'rouds'", "'c'"):
        assert part in text, text
    with pytest.raises(ConfigError, match="modle"):
        load_pipeline(file)


def test_a_misspelt_preset_does_not_hide_missing_data_and_unknown_names(tmp_path: Path) -> None:
    file = tmp_path / "pipeline.yaml"
    file.write_text(
        "version: 1\nname: toy\nmodel: {family: autoglm-phone, preset: tyny}\n"
        "data: {d: {source: arrays, path: missing.npz}}\n"
        "passes: [{type: toy}, {type: toy, name: b, from: c}]\n"
    )
    with pytest.raises(ConfigError) as caught:
        check_pipeline(draft_pipeline(file), SourceContext(tmp_path))
    texts = [str(problem) for problem in caught.value.problems]
    assert len(texts) == 3, texts
    for text, part in zip(texts, ("'tyny'", "missing.npz", "'c'"), strict=True):
        assert part in text


def test_a_misspelt_key_is_reported_and_not_that_its_field_is_missing(tmp_path: Path) -> None:
    file = tmp_path / "pipeline.yaml"
    file.write_text(
        "version: 1\nname: toy\nmodel: {path: nowhere}\n"
        "data:\n  a: {source: arrays, pth: missing.npz}\n  b: {sorce: arrays}\n"
        "  c: {source: arrays, path: gone.npz}\n"
        "passes: [{typ: toy}]\n"
    )
    with pytest.raises(ConfigError) as caught:
        draft_pipeline(file)
    texts = [str(problem) for problem in caught.value.problems]
    assert len(texts) == 4, texts
    for text, part in zip(texts, ("'path'?", "'source'?", "gone.npz", "'type'?"), strict=True):
        assert part in text


def test_a_valid_file_gives_typed_steps() -> None:
    pipeline = pipeline_from_document(parse_document(VALID.encode()))
    assert [(step.name, step.parent, step.config.rounds) for step in pipeline.steps] == [
        ("first", "source", 5),
        ("second", "source", 5),
    ]


def test_all_problems_are_listed_at_once_in_the_order_of_lines() -> None:
    texts = problems(
        "version: 2\n"
        "name: a b\n"
        "modle: {path: x}\n"
        "data:\n"
        "  test: {source: phone-bad}\n"
        "passes:\n"
        "  - {type: toy, rounds: '7'}\n"
        "  - {type: tyo}\n"
        "  - {type: toy, name: source}\n"
        "  - {type: toy, roundz: 1, name: b}\n"
        "gates:\n"
        "  - {metric: top1}\n"
    )
    text = "\n".join(texts)
    for expected in (
        "p.yaml:1: version",
        "p.yaml:2: name",
        "p.yaml:3: modle: unknown key",
        "did you mean 'model'?",
        "p.yaml:5: data.test.source: unknown data source 'phone-bad'",
        'p.yaml:7: passes[0].rounds: got "7" (text)',
        "p.yaml:8: passes[1].type: unknown pass 'tyo'",
        "did you mean 'toy'?",
        "the name 'source' is taken",
        "p.yaml:10: passes[3].roundz: unknown key 'roundz'",
        "did you mean 'rounds'?",
        "a gate needs a limit",
    ):
        assert expected in text, expected
    assert "model: is missing" not in text  # it is misspelt
    lines = [int(problem.split(":")[1]) for problem in texts]
    assert lines == sorted(lines)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("{}", "give either"),
        ("{path: a, family: b}", "give either"),
        ("{family: autoglm-phone}", "needs a `preset` or a `config`"),
        ("{family: autoglm-phone, preset: gib}", "no preset 'gib'"),
        ("{family: autoglm-fone, preset: tiny}", "did you mean 'autoglm-phone'?"),
        ("{family: autoglm-phone, preset: tiny, config: {hiden: 3}}", "unknown key 'hiden'"),
    ],
)
def test_invalid_models_are_errors(model: str, message: str) -> None:
    assert any(message in text for text in problems(VALID.replace("{path: model}", model)))


def test_an_empty_file_is_no_pipeline() -> None:
    assert "is not a pipeline" in problems("")[0]
    assert "is not a pipeline" in problems("- 1\n")[0]


def test_overrides_are_checked_like_the_file(tmp_path: Path) -> None:
    file = tmp_path / "p.yaml"
    file.write_text(VALID)
    assert load_pipeline(file, ["passes[1].rounds=2", "seed=7"]).steps[1].config.rounds == 2
    with pytest.raises(ConfigError, match="roundz"):
        load_pipeline(file, ["passes[1].roundz=2"])
    with pytest.raises(ConfigError, match="text"):
        load_pipeline(file, ["passes[1].rounds='2'"])
    for override in ("seed", "=3", "passes[9].rounds=2", "name.x=1"):
        with pytest.raises(UsageError):
            load_pipeline(file, [override])


def test_a_misspelt_preset_is_one_problem() -> None:
    text = b"version: 1\nname: p\nmodel: {family: autoglm-phone, presett: bed-teacher}\n"
    with pytest.raises(ConfigError) as caught:
        pipeline_from_document(parse_document(text))
    assert "presett" in str(caught.value)
    assert "is missing" not in str(caught.value)
