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
    tokenizer = Tokenizer(
        WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="[UNK]")
    )
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.post_processor = TemplateProcessing(
        "[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    tokenizer.enable_padding(length=99)  # as checkpoints come; the config decides
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    write(tmp_path, *PAIRS)
    return SourceContext(tmp_path)


def write(folder: Path, *records: Any) -> None:
    (folder / "pairs.jsonl").write_text("".join(json.dumps(one) + "\n" for one in records))


def config(**fields: Any) -> TextPairsConfig:
    return TextPairsConfig(
        **(
            {"source": "text-pairs", "path": "pairs.jsonl", "tokenizer": ".", "sequence_length": 6}
            | fields
        )
    )


def test_a_passage_and_then_its_query_cut_and_padded(context: SourceContext) -> None:
    assert TextPairs().problems(config(), context) == []
    samples = TextPairs().load(config(), context)
    assert samples.input_names == ("input_ids", "attention_mask")
    batch = samples.batch(np.arange(len(samples)))
    pad = WORDS.index("[PAD]")
    assert batch["input_ids"].tolist() == [
        [1, 6, 7, 8, 2, pad],
        [1, 3, 4, 5, 2, pad],
        [1, 11, 7, 12, 7, 2],
        [1, 3, 4, 10, 2, pad],
    ]
    assert batch["attention_mask"].tolist() == [
        [1] * 5 + [0],
        [1] * 5 + [0],
        [1] * 6,
        [1] * 5 + [0],
    ]
    assert batch["label"].tolist() == [-100, 0, -100, 2]


def test_pairs_are_drawn_whole(context: SourceContext) -> None:
    write(context.base, *(PAIRS[n % 2] for n in range(9)))
    drawn = TextPairs().load(config(num_samples=3, seed=1), context)
    assert drawn.batch(np.arange(6))["label"].tolist() == [-100, 0, -100, 2, -100, 4]
    assert len(drawn) == 6


def test_the_digest_follows_text_and_tokenizer_but_no_place(context: SourceContext) -> None:
    before = TextPairs().digest(config(), context)
    (context.base / "pairs.jsonl").rename(context.base / "other.jsonl")
    assert TextPairs().digest(config(path="other.jsonl"), context) == before
    assert TextPairs().digest(config(path="other.jsonl", sequence_length=7), context) != before
    file = context.base / "tokenizer.json"
    file.write_text(file.read_text().replace("boot", "root"))
    assert TextPairs().digest(config(path="other.jsonl"), context) != before


def test_what_is_missing_is_known_before_a_run(context: SourceContext) -> None:
    told = TextPairs().problems(config(path="none/*.jsonl", tokenizer="none"), context)
    assert ["there is no tokenizer at" in told[0], "none/*.jsonl matches no file" in told[1]] == [
        True,
        True,
    ]


@pytest.mark.parametrize(
    ("records", "told"),
    [
        ([PAIRS[0], {"query": "how"}], ":2: no JSON record with the fields 'query' and 'passage'"),
        (["how"], ":1: no JSON record"),
        (
            [{"query": "how", "passage": " "}],
            ":1: `query` and `passage` must be texts that are not empty",
        ),
        ([{"query": "how", "passage": 3}], ":1: `query` and `passage` must be texts"),
        ([], "holds no pairs"),
    ],
)
def test_records_that_are_no_pairs(context: SourceContext, records: list[Any], told: str) -> None:
    write(context.base, *records)
    with pytest.raises(DataError, match=told):
        TextPairs().load(config(), context)
    (context.base / "pairs.jsonl").write_bytes(b"\xff")
    with pytest.raises(DataError, match="not UTF-8: byte 0"):
        TextPairs().load(config(), context)
