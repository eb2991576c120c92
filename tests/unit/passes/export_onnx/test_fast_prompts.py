"""Prompts by weights in 8 bits: close to what the file itself answers, in every way that a decoder is fed."""

import tempfile
import weakref
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from compressor.errors import PassError, StorageError, UsageError
from compressor.runtimes import memory
from compressor.runtimes.onnxruntime import integer_kernels
from compressor.runtimes.onnxruntime.decoder import decoder as onnx_decoder
from compressor.runtimes.onnxruntime.decoder import fast_prompts as onnx_prompts
from compressor.runtimes.onnxruntime.decoder.binding import BoundSession
from compressor.runtimes.onnxruntime.decoder.decoder import OnnxDecoder
from compressor.runtimes.onnxruntime.inference import open_inference_session
from tests.unit.passes.export_onnx.test_decoder import (
    FAMILY,
    FIELDS,
    TOKENS,
    awq,
    exported,
    parent_in,
)


def graph(folder, preset="tiny-llama", **decoder):
    exported(
        awq(parent_in(folder / "parent", preset), folder),
        folder / "graph",
        {**FIELDS, "decoder": decoder},
    )
    return folder / "graph"


def divergence(one_BTV, other_BTV):
    """KL, of each token [B, T]."""
    logs = [
        scores - np.logaddexp.reduce(scores, axis=-1, keepdims=True)
        for scores in (one_BTV, other_BTV)
    ]
    return (np.exp(logs[0]) * (logs[0] - logs[1])).sum(axis=-1)


@pytest.mark.parametrize("preset", FAMILY.presets)
def test_every_architecture_reads_prompts_in_8_bits(preset, tmp_path):
    folder = graph(tmp_path, preset)
    exact, fast = (
        OnnxDecoder(folder, 1, capacity=60),
        OnnxDecoder(folder, 1, capacity=60, fast_prompts=True),
    )
    wanted, got = (
        decoder.forward(TOKENS[:1], logits_to_keep=0).copy() for decoder in (exact, fast)
    )
    assert 0 < divergence(wanted, got).mean() < 1e-3
    wanted, got = (decoder.forward(np.array([[7]])).copy() for decoder in (exact, fast))
    assert 0 < divergence(wanted, got).mean() < 1e-3  # behind keys and values of the prompt's


def test_few_tokens_are_read_as_the_file_says(tmp_path):
    folder = graph(tmp_path)
    exact, fast = (
        OnnxDecoder(folder, 1, capacity=60),
        OnnxDecoder(folder, 1, capacity=60, fast_prompts=True),
    )
    for tokens in (15, 1, 3):
        assert np.array_equal(exact.forward(TOKENS[:1, :tokens]), fast.forward(TOKENS[:1, :tokens]))
    assert not np.array_equal(exact.forward(TOKENS[:1, :16]), fast.forward(TOKENS[:1, :16]))


@pytest.mark.parametrize(
    "decoder", [{"int8_tables": True}, {"int8_kv_cache": {"data": "text"}}], ids=str
)
def test_batches_padding_and_pieces(decoder, tmp_path):
    folder = graph(tmp_path, **decoder)
    ids = np.random.default_rng(1).integers(3, 490, (2, 150))
    lengths = np.array([150, 40])
    exact = OnnxDecoder(folder, 1, batch_size=2, capacity=160)
    fast = OnnxDecoder(folder, 1, batch_size=2, capacity=160, fast_prompts=True)
    wanted, got = (one.forward(ids, lengths, logits_to_keep=0).copy() for one in (exact, fast))
    meant = np.arange(150) < lengths[:, None]
    assert divergence(wanted, got)[meant].mean() < 1e-3
    wanted, got = (one.forward(ids[:, :1]).copy() for one in (exact, fast))
    assert divergence(wanted, got).max() < 2e-3
    alone = OnnxDecoder(folder, 1, capacity=160, fast_prompts=True)
    whole = alone.forward(ids[:1], logits_to_keep=0)[:, -1:].copy()
    alone.reset()
    assert divergence(whole, alone.forward(ids[:1])).max() < 2e-3  # 22 tokens, then 128


def test_weights_that_lie_beside_the_graph(tmp_path):
    parent = awq(parent_in(tmp_path / "parent", "tiny-qwen2"), tmp_path)
    for name, limit in (("inside", 100), ("beside", 0)):
        exported(parent, tmp_path / name, {**FIELDS, "external_data_threshold_mb": limit})
    said = [
        OnnxDecoder(tmp_path / name, 1, capacity=60, fast_prompts=True).forward(TOKENS[:1])
        for name in ("inside", "beside")
    ]
    assert np.array_equal(*said)


@pytest.mark.parametrize("decoder", [{"target": "portable"}, {"accuracy_level": 1}, None], ids=str)
def test_what_has_no_packed_integers_is_told(decoder, tmp_path):
    if decoder is None:
        exported(parent_in(tmp_path / "parent", "tiny-llama"), tmp_path / "graph")
    else:
        graph(tmp_path, **decoder)
    with pytest.raises(
        UsageError, match="has no weights that are multiplied as packed integers"
    ) as caught:
        OnnxDecoder(tmp_path / "graph", 1, capacity=60, fast_prompts=True)
    assert "awq" in caught.value.remedy


def test_turns_go_from_one_graph_to_the_other_and_back(tmp_path):
    folder, ids = graph(tmp_path), np.random.default_rng(2).integers(3, 490, (1, 90))
    exact, fast = (
        OnnxDecoder(folder, 1, capacity=100),
        OnnxDecoder(folder, 1, capacity=100, fast_prompts=True),
    )
    start = 0
    for tokens in (20, 1, 1, 30, 2, 17, 1):
        wanted, got = (one.forward(ids[:, start : start + tokens]).copy() for one in (exact, fast))
        assert divergence(wanted, got).max() < 2e-3
        start += tokens
    fast.truncate(52)
    assert np.array_equal(fast.forward(ids[:, 52:54]), fast_at(folder, ids, 52)[:, -1:])


def fast_at(folder, ids, first):
    fresh = OnnxDecoder(folder, 1, capacity=100, fast_prompts=True)
    for start, end in ((0, 20), (20, 21), (21, 22), (22, first)):
        fresh.forward(ids[:, start:end])
    return fresh.forward(ids[:, first : first + 2])


def test_a_step_of_many_texts_is_read_as_the_file_says(tmp_path):
    folder = graph(tmp_path)
    exact = OnnxDecoder(folder, 1, batch_size=20, capacity=8)
    fast = OnnxDecoder(folder, 1, batch_size=20, capacity=8, fast_prompts=True)
    ids = np.random.default_rng(1).integers(3, 490, (20, 1))
    assert np.array_equal(exact.forward(ids), fast.forward(ids))


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError, PassError("inside")])
def test_what_fails_in_a_later_piece_leaves_the_conversation_as_it_was(
    error, tmp_path, monkeypatch
):
    folder, ids = graph(tmp_path), np.random.default_rng(2).integers(3, 490, (1, 300))
    decoder = OnnxDecoder(folder, 1, capacity=400, fast_prompts=True)
    decoder.forward(ids[:, :50])
    wanted = decoder.forward(ids[:, 50:52]).copy()
    decoder.truncate(50)
    calls, run = [], BoundSession.run

    def fails(self, *given):
        calls.append(given)
        if len(calls) == 2:
            raise error
        return run(self, *given)

    with monkeypatch.context() as patched:
        patched.setattr(BoundSession, "run", fails)
        with pytest.raises(type(error) if isinstance(error, Exception) else error):
            decoder.forward(ids[:, 20:300])
    assert len(calls) == 2
    assert np.array_equal(decoder.forward(ids[:, 50:52]), wanted)


def test_scores_of_a_whole_prompt_are_not_kept_through_the_steps(tmp_path):
    decoder = OnnxDecoder(graph(tmp_path), 1, capacity=100, fast_prompts=True)
    scores = weakref.ref(decoder.forward(TOKENS[:1], logits_to_keep=0))
    assert scores() is not None
    decoder.forward(np.array([[5]]))
    assert scores() is None


@pytest.mark.parametrize("wrong", [False, True])
def test_a_processor_whose_fast_products_are_wrong_takes_the_exact_ones(
    wrong, tmp_path, monkeypatch
):
    folder, settings = graph(tmp_path), []
    monkeypatch.setattr(integer_kernels, "integer_products_saturate", lambda: wrong)
    monkeypatch.setattr(
        onnx_decoder,
        "open_inference_session",
        lambda *given, **named: settings.append(named) or open_inference_session(*given, **named),
    )
    exact, fast = (
        OnnxDecoder(folder, 1, capacity=60),
        OnnxDecoder(folder, 1, capacity=60, fast_prompts=True),
    )
    assert ["session.x64quantprecision" in one["settings"] for one in settings] == [
        False,
        False,
        wrong,
    ]
    assert (
        0
        < divergence(
            exact.forward(TOKENS[:1], logits_to_keep=0), fast.forward(TOKENS[:1], logits_to_keep=0)
        ).mean()
        < 1e-3
    )


def test_products_that_saturate_are_found(monkeypatch):
    """Here they may be right or wrong; whatever this processor does, wrong ones are called so."""
    assert integer_kernels.integer_products_saturate() in {False, True}
    clamped = SimpleNamespace(run=lambda *_: [np.full((16, 1), 4 * 32_767)])
    monkeypatch.setattr(integer_kernels.onnxruntime, "InferenceSession", lambda *_, **__: clamped)
    assert integer_kernels.integer_products_saturate()


def test_what_does_not_fit_is_told_and_nothing_stays_on_the_disk(tmp_path, monkeypatch):
    folder, spare = graph(tmp_path), tmp_path / "spare"
    spare.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(spare))

    def short(*_, **__):
        raise OSError("331776 requested and 149760 written")  # as NumPy says it, without a number

    with monkeypatch.context() as patched:
        patched.setattr(onnx_prompts.ir, "save", short)
        with pytest.raises(
            StorageError,
            match=r"cannot write the graph for prompts to .*spare: 331776 requested and 149760 written",
        ):
            OnnxDecoder(folder, 1, capacity=60, fast_prompts=True)
    with monkeypatch.context() as patched:
        patched.setattr(onnx_prompts.shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
        with pytest.raises(StorageError, match=r"needs 0 MB in .*spare, and 0 MB are free"):
            OnnxDecoder(folder, 1, capacity=60, fast_prompts=True)
    with monkeypatch.context() as patched:
        patched.setattr(tempfile, "tempdir", str(tmp_path / "missing"))
        with pytest.raises(
            StorageError, match="cannot create a temporary directory: No such file"
        ) as caught:
            OnnxDecoder(folder, 1, capacity=60, fast_prompts=True)
        assert "TMPDIR" in caught.value.remedy
    with monkeypatch.context() as patched:
        patched.setattr(memory.psutil, "virtual_memory", lambda: SimpleNamespace(available=100_000))
        with pytest.raises(UsageError, match="not enough memory for the 8-bit weights for prompts"):
            OnnxDecoder(folder, 1, capacity=20, fast_prompts=True)
    OnnxDecoder(folder, 1, capacity=20, fast_prompts=True)
    assert not list(spare.iterdir())
    held = "/proc/self/maps"
    if Path(
        held
    ).exists():  # where it does, nothing of the file is mapped any more: its blocks are free
        assert str(spare) not in Path(held).read_text(encoding="utf-8")
