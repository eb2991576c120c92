"""Prefill with 8-bit weights: close to the packed weights, in every way of running a decoder."""

import tempfile
import weakref
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from compressor.errors import PassError, StorageError, UsageError
from compressor.runtimes import memory
from compressor.runtimes.onnxruntime import integer_kernels
from compressor.runtimes.onnxruntime.decoder import fast_prompts, opening
from compressor.runtimes.onnxruntime.decoder.binding import BoundSession
from compressor.runtimes.onnxruntime.decoder.decoder import OnnxDecoder
from compressor.runtimes.onnxruntime.inference import open_inference_session
from tests.support.decoders import (
    FAMILY,
    FIELDS,
    TOKENS,
    export_decoder,
    pack_decoder,
    save_decoder,
)


def packed_graph(folder, preset="tiny-llama", **decoder):
    parent = pack_decoder(save_decoder(folder / "parent", preset), folder)
    export_decoder(parent, folder / "graph", {**FIELDS, "decoder": decoder})
    return folder / "graph"


def exact_and_fast(folder, capacity, batch_size=1):
    """Return a decoder that prefills with packed weights, and one with 8-bit weights."""
    return tuple(
        OnnxDecoder(folder, 1, batch_size=batch_size, capacity=capacity, fast_prompts=fast)
        for fast in (False, True)
    )


def divergence(expected_BTV, actual_BTV):
    """Return the KL divergence of each token [B, T]."""
    log_p, log_q = (
        logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True)
        for logits in (expected_BTV, actual_BTV)
    )
    return (np.exp(log_p) * (log_p - log_q)).sum(axis=-1)


@pytest.mark.parametrize("preset", FAMILY.presets)
def test_every_architecture_prefills_with_8_bit_weights(preset, tmp_path):
    decoders = exact_and_fast(packed_graph(tmp_path, preset), capacity=60)
    exact, fast = (decoder.forward(TOKENS[:1], logits_to_keep=0).copy() for decoder in decoders)
    assert 0 < divergence(exact, fast).mean() < 1e-3
    exact, fast = (decoder.forward(np.array([[7]])).copy() for decoder in decoders)
    assert 0 < divergence(exact, fast).mean() < 1e-3  # behind the cache of the prompt


def test_few_tokens_are_read_with_packed_weights(tmp_path):
    exact, fast = exact_and_fast(packed_graph(tmp_path), capacity=60)
    for tokens in (15, 1, 3):
        assert np.array_equal(exact.forward(TOKENS[:1, :tokens]), fast.forward(TOKENS[:1, :tokens]))
    assert not np.array_equal(exact.forward(TOKENS[:1, :16]), fast.forward(TOKENS[:1, :16]))


@pytest.mark.parametrize(
    "decoder", [{"int8_embeddings": True}, {"int8_kv_cache": {"data": "text"}}], ids=str
)
def test_batches_padding_and_chunks_stay_close(decoder, tmp_path):
    folder = packed_graph(tmp_path, **decoder)
    ids = np.random.default_rng(1).integers(3, 490, (2, 150))
    lengths = np.array([150, 40])
    decoders = exact_and_fast(folder, capacity=160, batch_size=2)
    exact, fast = (decoder.forward(ids, lengths, logits_to_keep=0).copy() for decoder in decoders)
    is_valid = np.arange(150) < lengths[:, None]
    assert divergence(exact, fast)[is_valid].mean() < 1e-3
    exact, fast = (decoder.forward(ids[:, :1]).copy() for decoder in decoders)
    assert divergence(exact, fast).max() < 2e-3
    single = OnnxDecoder(folder, 1, capacity=160, fast_prompts=True)
    whole = single.forward(ids[:1], logits_to_keep=0)[:, -1:].copy()
    single.reset()
    assert divergence(whole, single.forward(ids[:1])).max() < 2e-3  # 22 tokens, then 128


def test_weights_beside_the_graph_give_the_same_logits(tmp_path):
    parent = pack_decoder(save_decoder(tmp_path / "parent", "tiny-qwen2"), tmp_path)
    for name, limit in (("inside", 100), ("beside", 0)):
        export_decoder(parent, tmp_path / name, {**FIELDS, "external_data_threshold_mb": limit})
    logits = [
        OnnxDecoder(tmp_path / name, 1, capacity=60, fast_prompts=True).forward(TOKENS[:1])
        for name in ("inside", "beside")
    ]
    assert np.array_equal(*logits)


@pytest.mark.parametrize("decoder", [{"target": "portable"}, {"accuracy_level": 1}, None], ids=str)
def test_graphs_without_packed_integer_products_are_refused(decoder, tmp_path):
    if decoder is None:
        export_decoder(save_decoder(tmp_path / "parent", "tiny-llama"), tmp_path / "graph")
    else:
        packed_graph(tmp_path, **decoder)
    with pytest.raises(
        UsageError, match="has no weights that are multiplied as packed integers"
    ) as caught:
        OnnxDecoder(tmp_path / "graph", 1, capacity=60, fast_prompts=True)
    assert "awq" in caught.value.remedy


def test_prompts_and_tokens_alternate_between_the_two_graphs(tmp_path):
    folder, ids = packed_graph(tmp_path), np.random.default_rng(2).integers(3, 490, (1, 90))
    decoders = exact_and_fast(folder, capacity=100)
    start = 0
    for tokens in (20, 1, 1, 30, 2, 17, 1):
        exact, fast = (
            decoder.forward(ids[:, start : start + tokens]).copy() for decoder in decoders
        )
        assert divergence(exact, fast).max() < 2e-3
        start += tokens
    fast_decoder = decoders[1]
    fast_decoder.truncate(52)
    fresh = OnnxDecoder(folder, 1, capacity=100, fast_prompts=True)
    for first, last in ((0, 20), (20, 21), (21, 22), (22, 52)):
        fresh.forward(ids[:, first:last])
    expected = fresh.forward(ids[:, 52:54])[:, -1:]
    assert np.array_equal(fast_decoder.forward(ids[:, 52:54]), expected)


def test_one_token_of_many_sequences_is_read_with_packed_weights(tmp_path):
    exact, fast = exact_and_fast(packed_graph(tmp_path), capacity=8, batch_size=20)
    ids = np.random.default_rng(1).integers(3, 490, (20, 1))
    assert np.array_equal(exact.forward(ids), fast.forward(ids))


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError, PassError("inside")])
def test_a_failure_in_a_later_chunk_leaves_the_cache_as_it_was(error, tmp_path, monkeypatch):
    folder, ids = packed_graph(tmp_path), np.random.default_rng(2).integers(3, 490, (1, 300))
    decoder = OnnxDecoder(folder, 1, capacity=400, fast_prompts=True)
    decoder.forward(ids[:, :50])
    expected = decoder.forward(ids[:, 50:52]).copy()
    decoder.truncate(50)
    calls, run = [], BoundSession.run

    def fail_second(self, *arguments):
        calls.append(arguments)
        if len(calls) == 2:
            raise error
        return run(self, *arguments)

    with monkeypatch.context() as patched:
        patched.setattr(BoundSession, "run", fail_second)
        with pytest.raises(type(error) if isinstance(error, Exception) else error):
            decoder.forward(ids[:, 20:300])
    assert len(calls) == 2
    assert np.array_equal(decoder.forward(ids[:, 50:52]), expected)


def test_logits_of_a_whole_prompt_are_released_at_the_next_token(tmp_path):
    decoder = OnnxDecoder(packed_graph(tmp_path), 1, capacity=100, fast_prompts=True)
    logits = weakref.ref(decoder.forward(TOKENS[:1], logits_to_keep=0))
    assert logits() is not None
    decoder.forward(np.array([[5]]))
    assert logits() is None


@pytest.mark.parametrize("saturates", [False, True])
def test_a_cpu_whose_fast_products_saturate_uses_exact_ones(saturates, tmp_path, monkeypatch):
    folder, settings = packed_graph(tmp_path), []
    really_saturates = integer_kernels.integer_products_saturate()
    monkeypatch.setattr(integer_kernels, "integer_products_saturate", lambda: saturates)

    def record(*arguments, **options):
        settings.append(options["settings"])
        return open_inference_session(*arguments, **options)

    monkeypatch.setattr(opening, "open_inference_session", record)
    exact, fast = (
        decoder.forward(TOKENS[:1], logits_to_keep=0)
        for decoder in exact_and_fast(folder, capacity=60)
    )
    is_exact = ["session.x64quantprecision" in entries for entries in settings]
    assert is_exact == [False, False, saturates]
    if saturates or not really_saturates:
        assert 0 < divergence(exact, fast).mean() < 1e-3


def test_saturating_products_are_detected(monkeypatch):
    assert integer_kernels.integer_products_saturate() in {False, True}
    clamped = SimpleNamespace(run=lambda *_: [np.full((16, 1), 4 * 32_767)])
    monkeypatch.setattr(integer_kernels.onnxruntime, "InferenceSession", lambda *_, **__: clamped)
    assert integer_kernels.integer_products_saturate()


def test_lack_of_space_or_memory_is_an_error_and_no_file_remains(tmp_path, monkeypatch):
    folder, spare = packed_graph(tmp_path), tmp_path / "spare"
    spare.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(spare))

    def write_short(*_, **__):
        raise OSError("331776 requested and 149760 written")  # NumPy's error has no errno

    def open_fast(capacity=60):
        return OnnxDecoder(folder, 1, capacity=capacity, fast_prompts=True)

    with monkeypatch.context() as patched:
        patched.setattr(fast_prompts.ir, "save", write_short)
        message = r"cannot write the graph for prompts to .*spare: 331776 requested and 149760"
        with pytest.raises(StorageError, match=message):
            open_fast()
    with monkeypatch.context() as patched:
        patched.setattr(fast_prompts.shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
        with pytest.raises(StorageError, match=r"needs 0 MB in .*spare, and 0 MB are free"):
            open_fast()
    with monkeypatch.context() as patched:
        patched.setattr(tempfile, "tempdir", str(tmp_path / "missing"))
        message = "cannot create a temporary directory: No such file"
        with pytest.raises(StorageError, match=message) as caught:
            open_fast()
        assert "TMPDIR" in caught.value.remedy
    with monkeypatch.context() as patched:
        patched.setattr(memory.psutil, "virtual_memory", lambda: SimpleNamespace(available=100_000))
        with pytest.raises(UsageError, match="not enough memory for the 8-bit weights for prompts"):
            open_fast(capacity=20)
    open_fast(capacity=20)
    assert not list(spare.iterdir())
    maps = Path("/proc/self/maps")
    if maps.exists():  # no file is mapped any more: its disk blocks are free
        assert str(spare) not in maps.read_text(encoding="utf-8")
