"""Prefill and decode with a decoder's graph: capacity, truncation, batches and chunks."""

import numpy as np
import pytest

from compressor.errors import UsageError
from compressor.runtimes.onnxruntime.decoder.decoder import OnnxDecoder
from tests.support.decoders import FIELDS, TOKENS, export_decoder, save_decoder

TARGETS = pytest.mark.parametrize("target", ["onnxruntime", "portable"])


@pytest.fixture
def graph(tmp_path):
    """Return a function that exports a small decoder for a target."""

    def make(target="onnxruntime"):
        parent = save_decoder(tmp_path / "parent", "tiny-llama")
        export_decoder(parent, tmp_path / "out", {**FIELDS, "decoder": {"target": target}})
        return tmp_path / "out"

    return make


@TARGETS
def test_tokens_beyond_the_capacity_are_refused_and_reset_empties_the_cache(target, graph):
    decoder = OnnxDecoder(graph(target), 1, capacity=10)
    first = decoder.forward(TOKENS[:1, :8]).copy()
    assert first.shape == (1, 1, 512)
    decoder.forward(TOKENS[:1, 8:9])
    with pytest.raises(UsageError, match="11 tokens, and the key-value cache holds 10"):
        decoder.forward(TOKENS[:1, 9:11])
    decoder.forward(TOKENS[:1, 9:10])  # refused tokens are not in the cache
    with pytest.raises(UsageError, match="11 tokens, and the key-value cache holds 10"):
        decoder.forward(TOKENS[:1, 10:11])
    decoder.reset()
    assert np.array_equal(decoder.forward(TOKENS[:1, :8]), first)


@TARGETS
def test_long_prompts_in_a_batch_give_the_logits_of_each_alone(target, graph):
    folder, ids = graph(target), np.random.default_rng(1).integers(3, 490, (2, 150))
    batch = OnnxDecoder(folder, 1, batch_size=2, capacity=160)
    single = OnnxDecoder(folder, 1, capacity=160)
    prompt = batch.forward(ids)[:, 0].copy()
    if target == "onnxruntime":
        with pytest.raises(UsageError, match="takes one token per sequence there"):
            batch.forward(ids[:, :2])
    step = batch.forward(ids[:, :1])[:, 0]
    for row in range(2):
        single.reset()
        row_ids = ids[row : row + 1]
        np.testing.assert_allclose(single.forward(row_ids)[0, 0], prompt[row], atol=1e-4)
        np.testing.assert_allclose(single.forward(row_ids[:, :1])[0, 0], step[row], atol=1e-4)


@TARGETS
def test_a_truncated_cache_continues_from_the_kept_tokens(target, graph):
    decoder = OnnxDecoder(graph(target), 1, capacity=40)
    decoder.forward(TOKENS[:1, :20])
    expected = decoder.forward(TOKENS[:1, 20:22]).copy()
    decoder.forward(TOKENS[:1, 30:35])
    decoder.truncate(20)
    np.testing.assert_allclose(decoder.forward(TOKENS[:1, 20:22]), expected, atol=1e-5)


@pytest.mark.parametrize("tokens", [129, 256, 300])
def test_a_prompt_in_chunks_gives_the_logits_of_one_call(tokens, graph):
    decoder = OnnxDecoder(graph(), 1, capacity=tokens + 1)
    ids = np.random.default_rng(1).integers(3, 490, (1, tokens))
    whole = decoder.forward(ids, logits_to_keep=0)[:, -2:].copy()
    step = decoder.forward(ids[:, :1]).copy()
    decoder.reset()
    np.testing.assert_allclose(decoder.forward(ids, logits_to_keep=2), whole, atol=1e-4)
    np.testing.assert_allclose(decoder.forward(ids[:, :1]), step, atol=1e-4)
