"""Rows of a GGUF file in llama.cpp: what they return equals what whole windows give."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from compressor.errors import DataError
from compressor.runtimes.formats import format_named
from compressor.runtimes.rows import RowDecoder, RowOptions, SingleRow
from tests.support.gguf_checkpoints import export_gguf, save_gguf_parent

pytest.importorskip("gguf")
pytest.importorskip("xllamacpp")
TOKENS_BT = np.random.default_rng(0).integers(3, 380, (3, 40))
GGUF = format_named("gguf")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gguf")
    file, _ = export_gguf(save_gguf_parent(path / "parent"), path / "out")
    return file.parent


@pytest.fixture(scope="module")
def expected(folder: Path) -> np.ndarray:
    with GGUF.open_session(folder, threads=1) as session:
        logits_BTV: np.ndarray = session.run({"input_ids": TOKENS_BT})["logits"]
    return logits_BTV


@pytest.fixture
def rows(folder: Path) -> RowDecoder:
    return GGUF.open_rows(folder, RowOptions(threads=1, rows=3, capacity=64))


def check(actual: np.ndarray, expected: np.ndarray) -> None:
    np.testing.assert_allclose(actual, expected, atol=5e-3 * expected.std())


def test_a_prompt_in_pieces_gives_the_logits_of_its_last_tokens(
    rows: RowDecoder, expected: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    from compressor.runtimes.llamacpp import model

    monkeypatch.setattr(model, "CALL_TOKENS", 16)
    check(rows.append(0, 0, TOKENS_BT[0, :35], None, 1), expected[0, 34:35])
    check(rows.append(0, 35, TOKENS_BT[0, 35:], None, 5), expected[0, 35:])
    check(rows.append(1, 0, TOKENS_BT[1], None, 20), expected[1, 20:])


def test_rows_step_together_and_keep_apart(rows: RowDecoder, expected: np.ndarray) -> None:
    lengths = np.array([10, 25, 38])
    for row, length in enumerate(lengths):
        rows.append(row, 0, TOKENS_BT[row, :length], None, 1)
    ids_B = TOKENS_BT[np.arange(3), lengths]
    check(rows.step(lengths, ids_B, [None] * 3), expected[np.arange(3), lengths])
    check(rows.step(lengths[:2], ids_B[:2], [None] * 2), expected[[0, 1], lengths[:2]])


def test_rows_are_shortened_copied_and_exchanged(rows: RowDecoder, expected: np.ndarray) -> None:
    rows.append(0, 0, TOKENS_BT[0], None, 1)
    rows.append(2, 0, TOKENS_BT[2], None, 1)
    check(rows.append(0, 12, TOKENS_BT[0, 12:14], None, 2), expected[0, 12:14])
    rows.copy(0, 1, 13)
    check(rows.append(1, 13, TOKENS_BT[0, 13:15], None, 2), expected[0, 13:15])
    rows.swap(1, 2, 40)
    check(rows.append(1, 39, TOKENS_BT[2, 39:], None, 1), expected[2, 39:])
    check(rows.append(2, 15, TOKENS_BT[0, 15:17], None, 1), expected[0, 16:17])
    rows.release(0, 0)
    check(rows.append(0, 0, TOKENS_BT[1, :9], None, 1), expected[1, 8:9])


def test_one_sequence_is_read_token_by_token(rows: RowDecoder, expected: np.ndarray) -> None:
    sequence = SingleRow(rows)
    sequence.forward(TOKENS_BT[0, :30])
    for at in range(30, 34):
        check(sequence.forward(TOKENS_BT[0, at : at + 1]), expected[0, at])


def test_sizes_are_those_of_the_cache(rows: RowDecoder) -> None:
    assert rows.vocabulary == 512
    assert rows.truncates
    # 3 layers, 2 key heads of width 16, keys and values, float16
    assert rows.token_bytes == 3 * 2 * 16 * 2 * 2
    with pytest.raises(DataError, match="takes no images"):
        rows.encode_images(TOKENS_BT[0], {}, [])


def test_the_context_is_that_of_the_header(folder: Path) -> None:
    limits = GGUF.generation_limits(folder)
    assert limits.context_length == 512
    assert not limits.takes_images
