"""GGUF files in llama.cpp: batches, padding, and files that contradict themselves."""

from __future__ import annotations

import shutil
import struct
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from compressor.errors import DataError, MissingExtraError, ModelError, UsageError
from compressor.generation.generate import generate
from compressor.generation.prompt import Prompt
from compressor.generation.requests import SamplingOptions
from compressor.runtimes.formats import format_named, open_session, recognize
from compressor.runtimes.llamacpp import library
from compressor.runtimes.session import Session
from tests.support.gguf_checkpoints import export_gguf, save_gguf_parent

pytest.importorskip("gguf")
needs_llamacpp = pytest.mark.skipif(not find_spec("xllamacpp"), reason="xllamacpp is not installed")
TOKENS_BT = np.random.default_rng(0).integers(3, 380, (3, 40))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gguf")
    file, _ = export_gguf(save_gguf_parent(path / "parent"), path / "out")
    return file.parent


@pytest.fixture(scope="module")
def session(folder: Path) -> Iterator[Session]:
    with open_session("gguf", folder, threads=1) as opened:
        yield opened


def logits_of(session: Session, ids_BT: np.ndarray, **arrays: np.ndarray) -> np.ndarray:
    values: np.ndarray = session.run({"input_ids": ids_BT, **arrays})["logits"]
    return values


@needs_llamacpp
def test_samples_of_a_batch_do_not_see_each_other(session: Session) -> None:
    alone = np.concatenate([logits_of(session, ids_T[None]) for ids_T in TOKENS_BT])
    together = logits_of(session, TOKENS_BT)
    assert together.dtype == np.float32
    np.testing.assert_allclose(together, alone, atol=5e-3 * alone.std())


@needs_llamacpp
def test_padding_on_either_side_changes_no_logits(session: Session) -> None:
    mask_BT = np.ones_like(TOKENS_BT[:2])
    mask_BT[0, 30:], mask_BT[1, :7] = 0, 0
    logits_BTV = logits_of(session, TOKENS_BT[:2], attention_mask=mask_BT)
    for row, kept in enumerate((slice(0, 30), slice(7, 40))):
        alone = logits_of(session, TOKENS_BT[[row], kept])[0]
        np.testing.assert_allclose(logits_BTV[row, kept], alone, atol=5e-3 * alone.std())
    assert not logits_BTV[0, 30:].any()


@needs_llamacpp
def test_windows_longer_than_one_call_keep_their_earlier_tokens(folder: Path) -> None:
    from compressor.runtimes.llamacpp import model

    ids_T = TOKENS_BT[0]
    with open_session("gguf", folder, threads=1) as opened:
        whole = logits_of(opened, ids_T[None])
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(model, "CALL_TOKENS", 16)
            pieces = logits_of(opened, ids_T[None])
    np.testing.assert_allclose(pieces, whole, atol=5e-3 * whole.std())


@needs_llamacpp
@pytest.mark.parametrize(
    ("mask", "message"),
    [([1, 0, 1, 1], "leaves out tokens between others"), ([0, 0, 0, 0], "leaves out all tokens")],
)
def test_masks_that_llamacpp_cannot_follow_are_refused(
    session: Session, mask: list[int], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        logits_of(session, TOKENS_BT[:1, :4], attention_mask=np.array([mask]))


@needs_llamacpp
def test_tokens_beyond_the_vocabulary_and_the_context_are_refused(session: Session) -> None:
    with pytest.raises(DataError, match="takes values below 512"):
        logits_of(session, np.array([[512]]))
    with pytest.raises(DataError, match="the model takes at most 512"):
        logits_of(session, np.zeros((1, 600), np.int64))


def with_metadata(content: bytes, key: bytes, value: int) -> bytes:
    """Return a file whose 32-bit value of a key is another one."""
    at = content.index(struct.pack("<Q", len(key)) + key) + 8 + len(key) + 4
    return content[:at] + struct.pack("<I", value) + content[at + 4 :]


@needs_llamacpp
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: content[:-5000], "truncated"),
        (lambda content: content[:200], "truncated"),
        (lambda content: with_metadata(content, b"llama.embedding_length", 3), "wrong shape"),
        (lambda content: with_metadata(content, b"llama.block_count", 0), "crashes its library"),
    ],
    ids=["no data", "no header", "other width", "no layers"],
)
def test_files_that_contradict_themselves_are_refused(
    folder: Path, tmp_path: Path, change: Callable[[bytes], bytes], message: str
) -> None:
    (tmp_path / "model.gguf").write_bytes(change((folder / "model.gguf").read_bytes()))
    with pytest.raises(ModelError, match=message):
        open_session("gguf", tmp_path, threads=1)


@needs_llamacpp
def test_another_binary_interface_is_refused_before_it_is_used(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(library._CONTEXT_DEFAULTS, "n_ubatch", 511)
    with pytest.raises(library.RequirementError, match="another binary interface"):
        library.load_library.__wrapped__()


def test_without_the_package_its_install_command_is_named(
    monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    monkeypatch.setattr(library, "find_spec", lambda _: None)
    library.load_library.cache_clear()
    with pytest.raises(MissingExtraError, match=r"autoglm-compress\[llamacpp\]"):
        open_session("gguf", folder, threads=1)


@needs_llamacpp
def test_generated_text_is_that_of_the_checkpoint(folder: Path) -> None:
    """The tokenizer files lie beside the GGUF file; the models differ by float16 keys alone."""
    prompt, sampling = Prompt(text="Hello there, it"), SamplingOptions(max_tokens=12)
    answers = [
        generate(recognize(path), prompt, sampling, threads=1, on_text=lambda _: None)
        for path in (folder.parent / "parent", folder)
    ]
    assert answers[0].tokens == answers[1].tokens > 1
    assert answers[0].text == answers[1].text


def test_a_gguf_file_alone_generates_no_text(folder: Path, tmp_path: Path) -> None:
    shutil.copyfile(folder / "model.gguf", tmp_path / "model.gguf")
    with pytest.raises(UsageError, match=r"no tokenizer\.json lies beside it") as caught:
        format_named("gguf").prompt_limits(tmp_path)
    assert "llama-cli -m" in str(caught.value)
