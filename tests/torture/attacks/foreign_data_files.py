"""Mutated data of every source: one file of each is damaged or replaced."""

from __future__ import annotations

import json
import random
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from tests.torture.examples import Example, write_pipeline
from tests.torture.foreign_files import damaged
from tests.torture.registry import Attack

_CALIBRATION = {"data": "d", "num_samples": 4, "batch_size": 2}
_AWQ = {"type": "awq", "name": "awq", "calibration": _CALIBRATION, "group_size": 16}
_COMPRESSED = _AWQ | {"format": "compressed-tensors"}
_PTQ = {"type": "qat", "name": "ptq", "calibration": _CALIBRATION}
_RUNS = 0.3
"""Share of the cases that run the pipeline, not only plan it."""
_ROWS = [{"text": " ".join(f"w{n}" for n in range(5 + k, 90)), "label": k % 2} for k in range(40)]


def data_files(root: Path) -> list[Example]:
    """Return a data set of every source, read by a step that calibrates on it."""
    return [
        *_texts(root / "texts"),
        _samples(root / "samples"),
        _pairs(root / "pairs"),
        _conversations(root / "conversations"),
        _captions(root / "captions"),
        _recordings(root / "recordings"),
        *_pictures(root / "pictures"),
    ]


def _example(
    folder: Path,
    name: str,
    pattern: str,
    source: dict[str, Any],
    step: dict[str, Any],
    metrics: tuple[str, ...] = (),
) -> Example:
    write_pipeline(folder / f"{name}.yaml", "m", source, step, metrics=metrics)

    def commands(rng: random.Random) -> list[list[str]]:
        run = [["run", f"{name}.yaml", "-o", "store"]] if rng.random() < _RUNS else []
        return [["validate", f"{name}.yaml"], ["plan", f"{name}.yaml"], *run]

    return Example(folder, (pattern,), commands)


def _texts(folder: Path) -> list[Example]:
    """Return texts for a decoder, in every form of file."""
    import pyarrow
    from pyarrow import parquet

    from tests.support.decoders import save_decoder
    from tests.support.processors import write_processor

    save_decoder(folder / "m", "tiny-llama")
    write_processor(folder / "m")
    (folder / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in _ROWS))
    (folder / "t.json").write_text(json.dumps(_ROWS))
    (folder / "t.csv").write_text(
        "text,label\n" + "".join(f"{row['text']},{row['label']}\n" for row in _ROWS)
    )
    (folder / "t.txt").write_text("\n".join(str(row["text"]) for row in _ROWS))
    parquet.write_table(pyarrow.Table.from_pylist(_ROWS), folder / "t.parquet")
    return [
        _example(
            folder,
            name,
            f"t.{name}",
            {"source": "text", "path": f"t.{name}", "tokenizer": "m", "sequence_length": 16},
            _AWQ,
        )
        for name in ("jsonl", "json", "csv", "parquet", "txt")
    ]


def _samples(folder: Path) -> Example:
    """Return labelled texts for a classifier."""
    from tests.support.encoder_classes import CLASSES, TinyClass
    from tests.support.text_checkpoints import write_records, write_word_tokenizer

    case = CLASSES["bert"]
    TinyClass(
        "BertForSequenceClassification", case.model_type, case.inputs, case.fields
    ).build().save_pretrained(folder / "m")
    write_word_tokenizer(folder / "m", 90)
    write_records(folder / "t.jsonl", *_ROWS[:12])
    source: dict[str, Any] = {
        "source": "text-samples",
        "path": "t.jsonl",
        "tokenizer": "m",
        "label": "label",
    }
    source |= {"sequence_length": 16, "token_types": True}
    return _example(folder, "samples", "t.jsonl", source, _PTQ, ("top1",))


def _pairs(folder: Path) -> Example:
    """Return pairs of queries and passages for a sentence encoder."""
    from tests.support.example_files import write_stand_in

    write_stand_in("minilm", folder, 12)
    (folder / "model").rename(folder / "m")
    (folder / "pairs" / "test.jsonl").rename(folder / "t.jsonl")
    source = {"source": "text-pairs", "path": "t.jsonl", "tokenizer": "m", "sequence_length": 16}
    return _example(folder, "pairs", "t.jsonl", source, _PTQ, ("top1", "mrr"))


def _conversations(folder: Path) -> Example:
    """Return conversations about pictures for a vision-language model."""
    from tests.support.decoders import save_decoder
    from tests.support.processors import (
        message,
        write_conversations,
        write_picture,
        write_processor,
    )

    save_decoder(folder / "m", "tiny-glm4v")
    write_processor(folder / "m")
    write_picture(folder / "p.png", 40, 30)
    turns = [message("user", "w7", "p.png"), message("assistant", "w8 w9")]
    write_conversations(folder / "c.jsonl", *[turns] * 4)
    source = {"source": "image-text", "path": "c.jsonl", "processor": "m"}
    return _example(folder, "conversations", "[cp].*", source, _AWQ)


def _captions(folder: Path) -> Example:
    """Return pictures with captions for CLIP."""
    import transformers

    from tests.support.encoder_classes import CLASSES
    from tests.support.processors import write_picture
    from tests.support.text_checkpoints import write_records, write_word_tokenizer

    case = CLASSES["clip"]
    case.build().save_pretrained(folder / "m")
    write_word_tokenizer(folder / "m", 90)
    (folder / "m" / "tokenizer_config.json").write_text('{"pad_token": "[PAD]"}')
    size = {"height": case.side, "width": case.side}
    transformers.CLIPImageProcessorPil(size=size, crop_size=size).save_pretrained(folder / "m")
    for index in range(4):
        write_picture(folder / f"p{index}.png", 30 + index, 40)
    records = ({"image": f"p{index}.png", "text": f"w{index + 9}"} for index in range(4))
    write_records(folder / "c.jsonl", *records)
    source = {"source": "image-captions", "path": "c.jsonl", "processor": "m"}
    return _example(folder, "captions", "[cp]*.[jp]*", source, _COMPRESSED, ("recall@1",))


def _recordings(folder: Path) -> Example:
    """Return recordings with transcripts for a speech model."""
    from tests.support.speech import save_encoder_decoder, write_wav

    save_encoder_decoder(folder / "m", "whisper")
    (folder / "sound").mkdir()
    for index in range(4):
        write_wav(folder / "sound" / f"{index}.wav", 0.3, index)
        (folder / "sound" / f"{index}.txt").write_text(f"w{index + 7} w9")
    source = {"source": "audio", "path": "sound", "processor": "m"}
    return _example(folder, "recordings", "sound/*", source, _COMPRESSED, ("wer",))


def _pictures(folder: Path) -> list[Example]:
    """Return pictures in folders, and as arrays, for a classifier."""
    from tests.support.example_files import write_stand_in
    from tests.support.processors import write_picture

    write_stand_in("efficientnet", folder, 4)
    (folder / "model").rename(folder / "m")
    for index in range(2):
        write_picture(folder / "train" / str(index) / "x.jpg", 224, 224)
    images = np.random.default_rng(0).integers(0, 256, (6, 3, 224, 224), dtype=np.uint8)
    np.savez(folder / "x.npz", image=images, label=np.arange(6) % 2)
    pictures = {"source": "images", "path": "train", "numbered": True}
    arrays = {"source": "arrays", "path": "x.npz"}
    return [
        _example(folder, "pictures", "train/*/*", pictures, _PTQ, ("top1",)),
        _example(folder, "arrays", "x.npz", arrays, _PTQ, ("top1",)),
    ]


ATTACK = Attack(
    "foreign-data-files",
    "Mutated data of every source: exit 0 or 2, no traceback, no hang, at most 1 GB",
    partial(damaged, data_files, 200),
)
