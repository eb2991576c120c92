"""Prompts by weights in 8 bits: close to what the file itself answers, in every way that a decoder is fed."""

import errno
import tempfile
from types import SimpleNamespace

import numpy as np
import pytest

from compressor.errors import StorageError, UsageError
from compressor.runtimes import memory, onnx_prompts
from compressor.runtimes.onnx_decoder import OnnxDecoder
from tests.unit.passes.export_onnx.test_decoder import FAMILY, FIELDS, TOKENS, awq, exported, parent_in


def graph(folder, preset="tiny-llama", **decoder):
    exported(awq(parent_in(folder / "parent", preset), folder), folder / "graph", {**FIELDS, "decoder": decoder})
    return folder / "graph"


def divergence(one_BTV, other_BTV):
    """KL, of each token [B, T]."""
    logs = [scores - np.logaddexp.reduce(scores, axis=-1, keepdims=True) for scores in (one_BTV, other_BTV)]
    return (np.exp(logs[0]) * (logs[0] - logs[1])).sum(axis=-1)


@pytest.mark.parametrize("preset", FAMILY.presets)
def test_every_architecture_reads_prompts_in_8_bits(preset, tmp_path):
    folder = graph(tmp_path, preset)
    exact, fast = OnnxDecoder(folder, 1, room=60), OnnxDecoder(folder, 1, room=60, fast_prompts=True)
    wanted, got = (decoder.feed(TOKENS[:1], keep=0).copy() for decoder in (exact, fast))
    assert 0 < divergence(wanted, got).mean() < 0.02
    wanted, got = (decoder.feed(np.array([[7]])).copy() for decoder in (exact, fast))
    assert 0 < divergence(wanted, got).mean() < 0.02  # behind keys and values of the prompt's


def test_few_tokens_are_read_as_the_file_says(tmp_path):
    folder = graph(tmp_path)
    exact, fast = OnnxDecoder(folder, 1, room=60), OnnxDecoder(folder, 1, room=60, fast_prompts=True)
    for tokens in (15, 1, 3):
        assert np.array_equal(exact.feed(TOKENS[:1, :tokens]), fast.feed(TOKENS[:1, :tokens]))
    assert not np.array_equal(exact.feed(TOKENS[:1, :16]), fast.feed(TOKENS[:1, :16]))


@pytest.mark.parametrize("decoder", [{"int8_tables": True}, {"int8_kv_cache": {"data": "text"}}], ids=str)
def test_batches_padding_and_pieces(decoder, tmp_path):
    folder = graph(tmp_path, **decoder)
    ids = np.random.default_rng(1).integers(3, 490, (2, 150))
    lengths = np.array([150, 40])
    exact = OnnxDecoder(folder, 1, samples=2, room=160)
    fast = OnnxDecoder(folder, 1, samples=2, room=160, fast_prompts=True)
    wanted, got = (one.feed(ids, lengths, keep=0).copy() for one in (exact, fast))
    meant = np.arange(150) < lengths[:, None]
    assert divergence(wanted, got)[meant].mean() < 0.02
    wanted, got = (one.feed(ids[:, :1]).copy() for one in (exact, fast))
    assert divergence(wanted, got).max() < 0.05
    alone = OnnxDecoder(folder, 1, room=160, fast_prompts=True)
    whole = alone.feed(ids[:1], keep=0)[:, -1:].copy()
    alone.start()
    assert divergence(whole, alone.feed(ids[:1])).max() < 0.02  # 22 tokens, then 128


def test_weights_that_lie_beside_the_graph(tmp_path):
    parent = awq(parent_in(tmp_path / "parent", "tiny-qwen2"), tmp_path)
    for name, limit in (("inside", 100), ("beside", 0)):
        exported(parent, tmp_path / name, {**FIELDS, "external_data_threshold_mb": limit})
    said = [
        OnnxDecoder(tmp_path / name, 1, room=60, fast_prompts=True).feed(TOKENS[:1]) for name in ("inside", "beside")
    ]
    assert np.array_equal(*said)


@pytest.mark.parametrize("decoder", [{"target": "portable"}, {"accuracy_level": 1}, None], ids=str)
def test_what_has_no_packed_integers_is_told(decoder, tmp_path):
    if decoder is None:
        exported(parent_in(tmp_path / "parent", "tiny-llama"), tmp_path / "graph")
    else:
        graph(tmp_path, **decoder)
    with pytest.raises(UsageError, match="holds no weights that are multiplied as packed integers") as caught:
        OnnxDecoder(tmp_path / "graph", 1, room=60, fast_prompts=True)
    assert "awq" in caught.value.remedy


def test_what_does_not_fit_is_told_and_nothing_stays_on_the_disk(tmp_path, monkeypatch):
    folder, spare = graph(tmp_path), tmp_path / "spare"
    spare.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(spare))

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device", str(spare / "model.onnx.data"))

    with monkeypatch.context() as patched:
        patched.setattr(onnx_prompts.ir, "save", full)
        with pytest.raises(StorageError, match=r"cannot be written into .*spare: No space left"):
            OnnxDecoder(folder, 1, room=60, fast_prompts=True)
    with monkeypatch.context() as patched:
        patched.setattr(memory.psutil, "virtual_memory", lambda: SimpleNamespace(available=100_000))
        with pytest.raises(UsageError, match="the weights in 8 bits that prompts are read by take"):
            OnnxDecoder(folder, 1, room=20, fast_prompts=True)
    OnnxDecoder(folder, 1, room=20, fast_prompts=True)
    assert not list(spare.iterdir())
