"""Tokenizers of whole words beside tiny checkpoints, in the form of BERT's."""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from tokenizers.processors import TemplateProcessing

SPECIAL = {"[PAD]": 0, "[CLS]": 1, "[SEP]": 2, "[MASK]": 3, "[UNK]": 4}


def write_word_tokenizer(folder: Path, words: int = 96) -> Path:
    """Write a tokenizer whose word ``w7`` is token 7; texts get [CLS] and [SEP]."""
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = SPECIAL | {f"w{number}": number for number in range(len(SPECIAL), words)}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    tokenizer.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 1), ("[SEP]", 2)],
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"pad_token": "[PAD]", "mask_token": {"content": "[MASK]"}}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def write_records(file: Path, *records: dict) -> Path:
    """Write a JSONL file."""
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    return file
