"""Paths and patterns of data files, and tokenizers that are missing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from calibration.sources.files import (
    file_problems,
    match_files,
    missing_token_problems,
    open_tokenizer,
    tokenizer_problems,
)
from compressor.data.contract import SourceContext


def write(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("x")


def names(folder: Path, pattern: str) -> list[str]:
    files = match_files(pattern, SourceContext(folder))
    return [file.relative_to(folder).as_posix() for file in files]


@pytest.mark.parametrize("name", ["a [1].txt", "what?.txt", "*.txt", "[ab]*/c.txt", ".hidden.txt"])
def test_a_path_that_exists_is_that_file(tmp_path: Path, name: str) -> None:
    write(tmp_path, name, "a 1.txt", "whatx.txt", "b.txt")
    assert names(tmp_path, name) == [name]
    assert match_files(str(tmp_path / name), SourceContext(Path("/"))) == [tmp_path / name]
    assert file_problems(name, SourceContext(tmp_path)) == []


def test_folders_that_exist_are_those_folders(tmp_path: Path) -> None:
    write(tmp_path, "set [1]/a.txt", "set 1/b.txt", "set 2/b.txt")
    assert names(tmp_path, "set [1]/*.txt") == ["set [1]/a.txt"]
    assert names(tmp_path, "set [12]/*.txt") == ["set 1/b.txt", "set 2/b.txt"]
    assert match_files(f"{tmp_path}/set [1]/*", SourceContext(Path("/"))) == [
        tmp_path / "set [1]" / "a.txt"
    ]


def test_hidden_files_match_only_where_the_pattern_names_them(tmp_path: Path) -> None:
    hidden = (".a.txt", "._b.txt", "d/.x/c.txt", "__MACOSX/d/e.txt")
    write(tmp_path, "b.txt", "d/c.txt", *hidden)
    assert names(tmp_path, "*.txt") == ["b.txt"]
    assert names(tmp_path, "**/*.txt") == ["b.txt", "d/c.txt"]
    assert names(tmp_path, ".*.txt") == ["._b.txt", ".a.txt"]
    assert names(tmp_path, "d/.x/*.txt") == ["d/.x/c.txt"]
    assert names(tmp_path, "__MACOSX/**/*.txt") == ["__MACOSX/d/e.txt"]
    below_hidden = SourceContext(tmp_path / "d" / ".x")
    assert match_files("*.txt", below_hidden) == [tmp_path / "d" / ".x" / "c.txt"]
    (problem,) = file_problems("d/*/*.txt", SourceContext(tmp_path))
    assert "matches only hidden files" in problem


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("d", "d is a folder: name its files, such as d/*.jsonl"),
        ("none/*.txt", "none/*.txt matches no file below"),
        ("", "is a folder"),
        ("a**b", "a**b matches no file below"),
        ("d/*", "d/* matches no file below"),
    ],
)
def test_what_names_no_file_is_reported(tmp_path: Path, pattern: str, message: str) -> None:
    (tmp_path / "d" / "e").mkdir(parents=True)
    (problem,) = file_problems(pattern, SourceContext(tmp_path))
    assert message in problem


@pytest.mark.parametrize("name", ["tokenizer.model", "vocab.txt"])
def test_a_slow_tokenizer_is_named_with_the_command_that_converts_it(
    tmp_path: Path, name: str
) -> None:
    write(tmp_path, name)
    (problem,) = tokenizer_problems(".", SourceContext(tmp_path))
    assert f"has {name}, but no tokenizer.json" in problem
    assert "AutoTokenizer" in problem
    assert ("pip install sentencepiece" in problem) == name.endswith(".model")


def test_a_tokenizer_without_a_vocabulary_is_refused(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(json.dumps({"model": {}}))
    (problem,) = tokenizer_problems("tokenizer.json", SourceContext(tmp_path))
    assert "is not a tokenizer" in problem


def test_tokens_that_only_the_config_adds_are_named_with_the_command_that_writes_them(
    tmp_path: Path,
) -> None:
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    words = Tokenizer(WordLevel({"a": 0}, unk_token="a"))
    PreTrainedTokenizerFast(tokenizer_object=words).save_pretrained(tmp_path)
    assert missing_token_problems(".", SourceContext(tmp_path)) == []
    file = tmp_path / "tokenizer_config.json"
    added = {"added_tokens_decoder": {"1": {"content": "<|end|>", "special": True}}}
    file.write_text(json.dumps(json.loads(file.read_text()) | added))
    (problem,) = missing_token_problems(".", SourceContext(tmp_path))
    assert "tokenizer_config.json adds tokens that tokenizer.json lacks: <|end|>" in problem
    assert f"T.from_pretrained('{tmp_path}').save_pretrained('{tmp_path}')" in problem
    AutoTokenizer.from_pretrained(tmp_path).save_pretrained(tmp_path)
    assert missing_token_problems(".", SourceContext(tmp_path)) == []
    assert open_tokenizer(tmp_path / "tokenizer.json").encode("<|end|>").ids == [1]
