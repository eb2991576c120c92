"""Tokenizers of foreign models that multiply each text until the memory is full."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from calibration.sources.files import open_tokenizer, tokenizer_problems
from compressor.data.contract import SourceContext
from compressor.errors import DataError
from compressor.foreign_files import tokenizer_trial, trials
from compressor.models.families.transformers.chat_templates import load_tokenizer
from tests.support.text_checkpoints import write_word_tokenizer
from tests.support.tokenizer_kinds import KINDS

LEVELS = 40


def replace(pattern: dict[str, str], content: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": pattern, "content": content}


def doubled(pattern: dict[str, str], text: str) -> dict[str, Any]:
    return {"type": "Sequence", "normalizers": [replace(pattern, text * 2)] * LEVELS}


BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
HOSTILE = {
    "a letter": {"normalizer": doubled({"String": "a"}, "a")},
    "a word of its own": {"normalizer": doubled({"String": "zqx"}, "zqx")},
    "any character": {"normalizer": doubled({"Regex": "[一-龥]"}, "一")},
    "one long text for each letter": {"normalizer": replace({"String": "e"}, "e" * 10**6)},
    "a pre-tokenizer": {
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [BYTE_LEVEL] * LEVELS}
    },
    "a decoder": {
        "decoder": {"type": "Sequence", "decoders": [replace({"String": "a"}, "aa")] * LEVELS}
    },
}


@pytest.mark.parametrize("parts", HOSTILE.values(), ids=HOSTILE)
def test_a_tokenizer_that_multiplies_texts_is_an_error_of_plan_and_step(
    parts: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trials, "CPU_SECONDS", 3)
    monkeypatch.setattr(trials, "MEMORY_BYTES", 1 << 28)
    file = write_word_tokenizer(tmp_path) / "tokenizer.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | parts))
    message = (
        r"tokenizer\.json: encoding a text of 100,000 characters "
        r"(needs more than 256 MiB of memory|does not end within 3 s)"
    )
    for opened, argument in ((open_tokenizer, file), (load_tokenizer, tmp_path)):
        with pytest.raises(DataError, match=message):
            opened(argument)
    (problem,) = tokenizer_problems("tokenizer.json", SourceContext(tmp_path))
    assert "encoding a text of 100,000 characters" in problem


@pytest.mark.parametrize("name", ["tokenizer.0.1.0.json", "more/tokenizer.0.1.0.json"])
def test_a_file_for_a_version_of_transformers_is_tried_too(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trials, "MEMORY_BYTES", 1 << 28)
    tree = json.loads((write_word_tokenizer(tmp_path) / "tokenizer.json").read_text())
    (tmp_path / "more").mkdir()
    (tmp_path / name).write_text(json.dumps(tree | HOSTILE["a letter"]))
    (tmp_path / "tokenizer_config.json").unlink()
    load_tokenizer(tmp_path)
    config = {"fast_tokenizer_files": ["tokenizer.json", name]}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(DataError, match=r"0\.1\.0\.json: encoding a text"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_tokenizers_of_published_kinds_are_tried_whole_and_not_refused(
    kind: Callable[[], Any], tmp_path: Path
) -> None:
    kind().save_pretrained(tmp_path)
    file = tmp_path / "tokenizer.json"
    tokenizer_trial._encode(file.read_text())  # raises what the trial leaves to the caller
    open_tokenizer(file)
    load_tokenizer(tmp_path)


def test_only_vocabularies_are_left_out(tmp_path: Path) -> None:
    model = (
        '"model": {"type": "BPE", "vocab": {"]}": 0, "a\\"": 1, "vocab": 2}, "merges": %s}, '
        '"normalizer": {"type": "NFC"}, "decoder": {"content": "\\"merges\\": []"}'
    )
    for merges in ("[]", '["] }", "a\\" ["]', '[["]", "}"], ["a\\"", "["]]'):
        content = "{" + model % merges + "}"
        left = json.loads(tokenizer_trial._VOCABULARY.sub(r"\1[]", content))
        expected = json.loads(content)
        expected["model"] |= {"vocab": [], "merges": []}
        assert left == expected
