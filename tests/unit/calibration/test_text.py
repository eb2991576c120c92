"""Data source text: windows of bytes and of tokens, and their problems."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing

from calibration.sources.text import Text, TextConfig
from compressor.data.contract import Dataset, SourceContext
from compressor.errors import DataError

WORDS = ["[?]", "a", "b", "c", "d", "<bos>", "</s>"]


def config_of(path: str, **fields: Any) -> TextConfig:
    return TextConfig(source="text", path=path, **fields)


def load(folder: Path, path: str, **fields: Any) -> Dataset:
    return Text().load(config_of(path, **fields), SourceContext(folder))


def write_tokenizer(folder: Path, template: str | None = None) -> None:
    vocabulary = {word: number for number, word in enumerate(WORDS)}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="[?]"))
    tokenizer.pre_tokenizer = Whitespace()
    if template is not None:
        special = [("<bos>", WORDS.index("<bos>")), ("</s>", WORDS.index("</s>"))]
        tokenizer.post_processor = TemplateProcessing(single=template, special_tokens=special)
    tokenizer.save(str(folder / "tokenizer.json"))


def test_text_is_cut_into_windows_of_bytes(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("abcdefgh" * 4)
    (tmp_path / "b.jsonl").write_text('{"text": "设置"}\n{"text": "xy"}\n')
    samples = load(tmp_path, "*.txt", sequence_length=5)
    tokens = samples.batch(np.arange(len(samples)))["tokens"]
    assert bytes((tokens - 1).ravel().tolist()) == b"abcdefgh" * 3 + b"abcdef"
    tokens = load(tmp_path, "b.jsonl", sequence_length=9).batch(np.arange(1))["tokens"]
    assert bytes((tokens[0] - 1).tolist()).decode() == "设置\nxy"
    with pytest.raises(DataError, match=r"b\.jsonl:1"):
        load(tmp_path, "b.jsonl", field="txt")
    with pytest.raises(DataError, match=r"no file of a\.txt holds a window of 100 bytes"):
        load(tmp_path, "a.txt", sequence_length=100)
    assert Text().problems(config_of("*.md"), SourceContext(tmp_path))


def test_text_is_cut_into_windows_of_tokens_with_the_next_token_as_label(tmp_path: Path) -> None:
    write_tokenizer(tmp_path)
    (tmp_path / "t.txt").write_text("a b c d a b x")
    context = SourceContext(tmp_path)
    config = config_of("t.txt", tokenizer=".", sequence_length=2)
    samples = Text().load(config, context)
    assert samples.input_names == ("input_ids",)
    assert samples.label_name == "label"
    assert samples.batch(np.arange(2))["input_ids"].tolist() == [[1, 2], [4, 1]]
    assert samples.batch(np.arange(2))["label"].tolist() == [[2, 3], [1, 2]]
    before = Text().digest(config, context)
    assert Text().problems(config, context) == []
    write_tokenizer(tmp_path, "<bos> $A")
    assert Text().digest(config, context) != before
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(DataError, match="is not a tokenizer"):
        Text().load(config, context)
    missing = config_of("t.txt", tokenizer="nowhere", sequence_length=2)
    assert "no tokenizer at" in Text().problems(missing, context)[0]


def test_windows_start_with_the_start_tokens_of_the_tokenizer(tmp_path: Path) -> None:
    write_tokenizer(tmp_path, "<bos> $A </s>")
    (tmp_path / "t.txt").write_text("a b c d a b d")
    batch = load(tmp_path, "t.txt", tokenizer=".", sequence_length=3).batch(np.arange(2))
    assert batch["input_ids"].tolist() == [[5, 1, 2], [5, 4, 1]]
    assert batch["label"].tolist() == [[1, 2, 3], [4, 1, 2]]
    with pytest.raises(DataError, match="the tokenizer puts 1 tokens before each window"):
        load(tmp_path, "t.txt", tokenizer=".", sequence_length=1)


def test_fields_without_effect_are_refused(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("abc")
    (tmp_path / "r.jsonl").write_text('{"body": "abc"}\n')
    context = SourceContext(tmp_path)
    problems = Text().problems(config_of("t.txt", field="body", seed=3), context)
    assert "`seed` has no effect" in problems[0]
    assert "`field` has no effect" in problems[1]
    config = config_of("r.jsonl", field="body", seed=3, num_samples=1)
    assert Text().problems(config, context) == []
