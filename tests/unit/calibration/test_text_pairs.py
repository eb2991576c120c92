"""Data source text-pairs: passages and queries, their labels, and their problems."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing

from calibration.sources.pairs import TextPairs, TextPairsConfig
from compressor.data.contract import SourceContext
from compressor.errors import DataError
from tests.support.record_files import write_json, write_table

WORDS = [
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "how",
    "to",
    "boot",
    "press",
    "the",
    "button",
    "[PAD]",
    "sleep",
    "close",
    "eyes",
]
PAIRS = [
    {"query": "how to boot", "passage": "press the button"},
    {"query": "how to sleep", "passage": "close the eyes the eyes the eyes"},
]


@pytest.fixture
def context(tmp_path: Path) -> SourceContext:
    vocabulary = {word: number for number, word in enumerate(WORDS)}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.post_processor = TemplateProcessing(
        "[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    tokenizer.enable_padding(length=99)  # As in published checkpoints; the config overrides it.
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    write(tmp_path, *PAIRS)
    return SourceContext(tmp_path)


def write(folder: Path, *records: Any) -> None:
    lines = "".join(json.dumps(record) + "\n" for record in records)
    (folder / "pairs.jsonl").write_text(lines)


def config_of(**fields: Any) -> TextPairsConfig:
    defaults = {
        "source": "text-pairs",
        "path": "pairs.jsonl",
        "tokenizer": ".",
        "sequence_length": 6,
    }
    return TextPairsConfig(**(defaults | fields))


def test_a_passage_precedes_its_query_and_both_are_truncated_and_padded(
    context: SourceContext,
) -> None:
    assert TextPairs().problems(config_of(), context) == []
    samples = TextPairs().load(config_of(), context)
    assert samples.input_names == ("input_ids", "attention_mask")
    batch = samples.batch(np.arange(len(samples)))
    pad = WORDS.index("[PAD]")
    assert batch["input_ids"].tolist() == [
        [1, 6, 7, 8, 2, pad],
        [1, 3, 4, 5, 2, pad],
        [1, 11, 7, 12, 7, 2],
        [1, 3, 4, 10, 2, pad],
    ]
    padded, full = [1] * 5 + [0], [1] * 6
    assert batch["attention_mask"].tolist() == [padded, padded, full, padded]
    assert batch["label"].tolist() == [-100, 0, -100, 2]


def test_token_types_are_an_input_of_models_that_take_them(context: SourceContext) -> None:
    samples = TextPairs().load(config_of(token_types=True), context)
    assert samples.input_names == ("input_ids", "attention_mask", "token_type_ids")
    assert not samples.batch(np.arange(2))["token_type_ids"].any()
    stated = TextPairs().facts(config_of(token_types=True), context).inputs or ()
    assert [facts.name for facts in stated] == list(samples.input_names)
    more = TextPairs().facts(config_of(), context).more_inputs
    assert more == {"token_type_ids": "token_types: true"}


def test_passage_and_query_are_drawn_together(context: SourceContext) -> None:
    write(context.base, *(PAIRS[number % 2] for number in range(9)))
    drawn = TextPairs().load(config_of(num_samples=3, seed=1), context)
    assert drawn.batch(np.arange(6))["label"].tolist() == [-100, 0, -100, 2, -100, 4]
    assert len(drawn) == 6
    facts = TextPairs().facts(config_of(num_samples=3, seed=1), context)
    assert facts.retrieval_labels == (-100, 0, -100, 2, -100, 4) and facts.num_samples == 6


def test_the_digest_covers_text_and_tokenizer_but_no_path(context: SourceContext) -> None:
    before = TextPairs().digest(config_of(), context)
    (context.base / "pairs.jsonl").rename(context.base / "other.jsonl")
    assert TextPairs().digest(config_of(path="other.jsonl"), context) == before
    longer = config_of(path="other.jsonl", sequence_length=7)
    assert TextPairs().digest(longer, context) != before
    file = context.base / "tokenizer.json"
    file.write_text(file.read_text().replace("boot", "root"))
    assert TextPairs().digest(config_of(path="other.jsonl"), context) != before


def test_missing_files_and_fields_without_effect_are_reported(context: SourceContext) -> None:
    config = config_of(path="none/*.jsonl", tokenizer="none", seed=1)
    problems = TextPairs().problems(config, context)
    assert len(problems) == 3
    assert "`seed` has no effect" in problems[0]
    assert "there is no tokenizer at" in problems[1]
    assert "none/*.jsonl matches no file" in problems[2]


@pytest.mark.parametrize(
    ("records", "message"),
    [
        (
            [PAIRS[0], {"query": "how"}],
            ":2: no field 'passage'; expected 'query' and 'passage', found 'query'",
        ),
        (["how"], ":1: no JSON record"),
        (
            [{"query": "how", "passage": " "}],
            ":1: 'passage' is blank",
        ),
        ([{"query": "how", "passage": 3}], ":1: 'passage' is the number 3, not text"),
        ([], "holds no pairs"),
    ],
)
def test_invalid_records_are_reported(
    context: SourceContext, records: list[Any], message: str
) -> None:
    write(context.base, *records)
    with pytest.raises(DataError, match=message):
        TextPairs().load(config_of(), context)


def test_a_file_that_is_not_utf8_is_reported(context: SourceContext) -> None:
    (context.base / "pairs.jsonl").write_bytes(b"\xff")
    with pytest.raises(DataError, match="not UTF-8: byte 0"):
        TextPairs().load(config_of(), context)


@pytest.mark.parametrize("name", ["pairs.csv", "pairs.json", "pairs.tsv", "pairs.jsonl.gz"])
def test_pairs_of_any_container_are_the_same(context: SourceContext, name: str) -> None:
    expected = TextPairs().load(config_of(), context).batch(np.arange(4))
    writer = write_table if name[-3:] in {"csv", "tsv"} else write_json
    writer(context.base / name, PAIRS)
    assert TextPairs().problems(config_of(path=name), context) == []
    batch = TextPairs().load(config_of(path=name), context).batch(np.arange(4))
    assert all(np.array_equal(batch[key], expected[key]) for key in expected)


def test_all_invalid_records_are_reported_while_planning_and_loading(
    context: SourceContext,
) -> None:
    write(context.base, PAIRS[0], {"query": None, "passage": "x"}, {"query": "x", "passage": []})
    problems = TextPairs().problems(config_of(), context)
    assert [problem.split("jsonl:")[1] for problem in problems] == [
        "2: 'query' is null, not text",
        "3: 'passage' is a list, not text",
    ]
    with pytest.raises(DataError, match=r":2: .*\n.*:3: "):
        TextPairs().load(config_of(), context)


def test_the_facts_are_those_of_the_loaded_set(context: SourceContext) -> None:
    samples = TextPairs().load(config_of(), context)
    facts = TextPairs().facts(config_of(), context)
    assert facts.inputs is not None
    assert tuple(input_.name for input_ in facts.inputs) == samples.input_names
    assert facts.has_labels
    assert [input_.largest for input_ in facts.inputs] == [len(WORDS) - 1, 1]
    assert {input_.shape for input_ in facts.inputs} == {(6,)}
