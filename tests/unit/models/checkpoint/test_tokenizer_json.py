"""Largest token id of a tokenizer.json: equal to that of the library that runs it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tokenizers import AddedToken, Tokenizer
from tokenizers.models import BPE, Model, Unigram, WordLevel, WordPiece

from compressor.errors import DataError
from compressor.models.checkpoint.tokenizer_json import largest_token_id

WORDS = {word: number for number, word in enumerate(["[UNK]", "a", "b", "ab", '"merges": ['])}
MODELS = {
    "WordLevel": WordLevel(WORDS, unk_token="[UNK]"),
    "WordPiece": WordPiece(WORDS, unk_token="[UNK]"),
    "BPE": BPE(WORDS, [("a", "b")]),
    "Unigram": Unigram([(word, 0.0) for word in WORDS], 0),
}


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
@pytest.mark.parametrize("added", [[], ["<s>", "<e>"]])
@pytest.mark.parametrize("pretty", [False, True])
def test_the_largest_id_is_that_of_the_library(
    model: Model, added: list[str], pretty: bool, tmp_path: Path
) -> None:
    tokenizer = Tokenizer(model)
    tokenizer.add_special_tokens([AddedToken(text) for text in added])
    tokenizer.save(str(tmp_path / "tokenizer.json"), pretty=pretty)
    expected = max(tokenizer.get_vocab(with_added_tokens=True).values())
    assert largest_token_id(tmp_path / "tokenizer.json") == expected


def test_the_order_of_the_keys_does_not_matter(tmp_path: Path) -> None:
    file = tmp_path / "tokenizer.json"
    model = {"type": "BPE", "merges": [["a", "b"]], "vocab": WORDS}
    file.write_text(json.dumps({"model": model, "added_tokens": [{"id": 77, "content": "<s>"}]}))
    assert largest_token_id(file) == 77
    model = {"type": "BPE", "vocab": WORDS, "merges": []}
    file.write_text(json.dumps({"model": model, "added_tokens": [{"id": 78, "content": "<s>"}]}))
    assert largest_token_id(file) == 78


def test_merges_at_the_end_of_a_file_are_not_parsed(tmp_path: Path) -> None:
    tree = {"added_tokens": [], "model": {"vocab": WORDS, "merges": [["a", "b"]]}}
    content = json.dumps(tree).replace('"merges": [', '"merges": [neither parsed nor valid')
    (tmp_path / "tokenizer.json").write_text(content)
    assert largest_token_id(tmp_path / "tokenizer.json") == max(WORDS.values())


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"model": {"vocab": {}}}', '{"model": 3}'])
def test_what_is_no_tokenizer_is_refused(content: str, tmp_path: Path) -> None:
    file = tmp_path / "tokenizer.json"
    file.write_text(content)
    with pytest.raises(DataError, match=r"is not (a tokenizer|valid JSON)"):
        largest_token_id(file)
