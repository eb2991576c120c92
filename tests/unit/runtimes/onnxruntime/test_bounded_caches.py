"""Layers with a window keep a cache of their window, and compute what torch does beyond it."""

import numpy as np
import onnx
import pytest

from compressor.errors import ModelError, PassError, UsageError
from compressor.graphs.decoder.cache_bounds import SPARE_ROWS, CacheBound
from compressor.graphs.decoder.interface import BOUNDED_CACHES_KEY
from compressor.runtimes.formats import open_session, recognize
from compressor.runtimes.onnxruntime.decoder.decoder import OnnxDecoder
from compressor.runtimes.rows import RowOptions
from tests.support.chat_models import answer_to, opened
from tests.support.decoders import FIELDS, export_decoder, save_decoder
from tests.support.processors import write_processor

WINDOW, CONTEXT = 32, 512
MODELS = {
    "mistral": ("tiny-mistral", {"sliding_window": WINDOW}),
    "gemma3": ("tiny-gemma3", {"sliding_window": WINDOW}),
    "qwen2": (
        "tiny-qwen2",
        {"sliding_window": WINDOW, "use_sliding_window": True, "max_window_layers": 1},
    ),
}
BOUNDED_LAYERS = {"mistral": 3, "gemma3": 2, "qwen2": 2}
EVERY_MODEL = pytest.mark.parametrize("name", MODELS)
TOKENS = np.random.default_rng(3).integers(4, 490, (2, 420))


@pytest.fixture(scope="module")
def bed(tmp_path_factory):
    """Return a function that exports a model once: its folder and torch's logits [2, T, V]."""
    made = {}

    def make(name):
        if name not in made:
            folder = tmp_path_factory.mktemp(name)
            parent = save_decoder(folder / "torch", *MODELS[name])
            write_processor(folder / "torch")
            output, _ = export_decoder(parent, folder / "onnx")
            sizes = {name: output.summary[name] for name in output.summary if "bytes" in name}
            assert sizes["kv_cache_bytes"] < 0.7 * sizes["kv_cache_bytes_without_bounds"]
            with open_session("torch", parent.model, threads=1) as session:
                made[name] = folder, session.run({"input_ids": TOKENS})["logits"]
        return made[name]

    return make


def rows_of(folder, rows=3):
    return recognize(folder).format.open_rows(folder, RowOptions(1, rows, CONTEXT))


def assert_same(actual, expected):
    assert np.abs(actual - expected).max() < 1e-4


@EVERY_MODEL
def test_tokens_one_by_one_behind_a_long_prompt_have_the_logits_of_torch(name, bed):
    folder, expected = bed(name)
    decoder = OnnxDecoder(folder / "onnx", 1, capacity=CONTEXT)
    assert_same(decoder.forward(TOKENS[:1, :300])[0, -1], expected[0, 299])
    for position in range(300, 420):
        logits = decoder.forward(TOKENS[:1, position : position + 1])[0, 0]
        assert_same(logits, expected[0, position])


@EVERY_MODEL
def test_caches_hold_little_more_than_the_window(name, bed):
    decoder = OnnxDecoder(bed(name)[0] / "onnx", 1, capacity=CONTEXT)
    decoder.forward(TOKENS[:1])
    held = [array.shape[2] for array in decoder.kv_cache().values()]
    bounded = [rows for rows in held if rows < CONTEXT // 2]
    assert len(bounded) == 2 * BOUNDED_LAYERS[name]
    assert held.count(420) == 6 - len(bounded)
    full = OnnxDecoder(bed(name)[0] / "onnx", 1, capacity=CONTEXT, drops_positions=False)
    full.forward(TOKENS[:1])
    assert {array.shape[2] for array in full.kv_cache().values()} == {420}
    rows = rows_of(bed(name)[0] / "onnx")
    position_bytes = 2 * 2 * 16 * 4
    assert rows.token_bytes == (3 - BOUNDED_LAYERS[name]) * position_bytes
    assert rows.row_bytes == BOUNDED_LAYERS[name] * position_bytes * CacheBound(WINDOW).rows


@EVERY_MODEL
def test_prompts_longer_than_the_buffers_are_read_at_once_and_in_a_batch(name, bed):
    folder, expected = bed(name)
    single = OnnxDecoder(folder / "onnx", 1, capacity=CONTEXT)
    assert_same(single.forward(TOKENS[:1, :300], logits_to_keep=0)[0], expected[0, :300])
    assert_same(single.forward(TOKENS[:1, 300:], logits_to_keep=0)[0], expected[0, 300:])
    batch = OnnxDecoder(folder / "onnx", 1, batch_size=2, capacity=CONTEXT)
    lengths = np.array([300, 30])
    logits = batch.forward(TOKENS[:, :300], lengths, logits_to_keep=0)
    for row, length in enumerate(lengths):
        assert_same(logits[row, :length], expected[row, :length])
    for step in range(100):
        ids = TOKENS[np.arange(2), lengths + step][:, None]
        logits = batch.forward(ids)[:, 0]
        assert_same(logits, expected[np.arange(2), lengths + step])


def test_a_cache_can_be_shortened_as_far_as_its_rows_exist(bed):
    folder, expected = bed("gemma3")
    decoder = OnnxDecoder(folder / "onnx", 1, capacity=CONTEXT)
    decoder.forward(TOKENS[:1, :400])
    assert decoder.can_truncate(400 - SPARE_ROWS)
    decoder.truncate(400 - SPARE_ROWS)
    logits = decoder.forward(TOKENS[:1, 400 - SPARE_ROWS :], logits_to_keep=0)[0]
    assert_same(logits, expected[0, 400 - SPARE_ROWS :])
    assert not decoder.can_truncate(100)
    with pytest.raises(UsageError, match="cannot be shortened to 100 tokens: it no longer holds"):
        decoder.truncate(100)
    decoder.truncate(0)
    assert_same(decoder.forward(TOKENS[:1, :50])[0, -1], expected[0, 49])


def test_a_prompt_that_fails_halfway_is_never_continued_with_holes(bed, monkeypatch):
    folder, expected = bed("mistral")
    decoder = OnnxDecoder(folder / "onnx", 1, capacity=CONTEXT)
    decoder.forward(TOKENS[:1, :100])
    run, calls = decoder._decode_session.run, []

    def fail_third(*arguments):
        calls.append(arguments)
        if len(calls) == 3:
            raise PassError("ONNX Runtime failed: out of paper")
        return run(*arguments)

    monkeypatch.setattr(decoder._decode_session, "run", fail_third)
    with pytest.raises(PassError, match="out of paper"):
        decoder.forward(TOKENS[:1, 100:])
    with pytest.raises(UsageError, match="no longer holds what the next token reads"):
        decoder.forward(TOKENS[:1, 100:101])
    decoder.reset()
    assert_same(decoder.forward(TOKENS[:1])[0, -1], expected[0, -1])


@EVERY_MODEL
def test_rows_of_different_lengths_are_stepped_copied_and_exchanged(name, bed):
    folder, expected = bed(name)
    rows = rows_of(folder / "onnx")
    assert_same(rows.append(0, 0, TOKENS[0, :300], None, 200), expected[0, 100:300])
    assert_same(rows.append(1, 0, TOKENS[1, :20], None, 1)[0], expected[1, 19])
    rows.copy(0, 2, 300)
    lengths = np.array([300, 20])
    for _ in range(90):
        logits = rows.step(lengths, TOKENS[np.arange(2), lengths], [None] * 2)
        assert_same(logits, expected[np.arange(2), lengths])
        lengths += 1
    rows.swap(1, 2, 390)
    assert_same(rows.append(1, 300, TOKENS[0, 300:310], None, 10), expected[0, 300:310])
    assert_same(rows.append(2, 110, TOKENS[1, 110:111], None, 1)[0], expected[1, 110])
    rows.release(0, 0)
    assert_same(rows.append(0, 0, TOKENS[1, :250], None, 1)[0], expected[1, 249])


def test_rows_state_how_far_they_can_be_resumed(bed):
    folder, expected = bed("mistral")
    rows = rows_of(folder / "onnx")
    rows.append(0, 0, TOKENS[0, :400], None, 1)
    assert rows.can_resume(0, 400 - SPARE_ROWS, 400)
    assert not rows.can_resume(0, 200, 400)
    assert rows.can_resume(0, 0, 400)
    guesses = rows.append(0, 400, TOKENS[0, 400:410], None, 10)
    assert_same(guesses, expected[0, 400:410])
    assert_same(rows.append(0, 401, TOKENS[0, 401:402], None, 1)[0], expected[0, 401])


@pytest.mark.parametrize("max_guesses", [0, 6])
def test_answers_are_the_same_after_a_beginning_that_was_dropped(max_guesses, bed):
    """A prefix whose rows are gone is read anew; one that is still there is used."""
    prompt, folder = TOKENS[0, :150].tolist(), bed("gemma3")[0] / "onnx"
    options = {"context": CONTEXT, "rows": 1, "max_guesses": max_guesses}
    with opened(folder, **options) as model:
        first = answer_to(model, prompt, 200)
        again = answer_to(model, prompt, 200)
        assert again.text == first.text
        assert again.finish.usage.cached_tokens == 0
        short = answer_to(model, prompt, 10)
        longer = answer_to(model, [*prompt, *TOKENS[1, :20].tolist()], 10)
        assert longer.finish.usage.cached_tokens == 150
    with opened(folder, **options) as model:
        assert answer_to(model, prompt, 10).text == short.text


@pytest.mark.parametrize(
    "fields",
    [
        {"decoder": {"int8_kv_cache": {"data": "text"}}},
        {"dtype": "float16"},
        {"decoder": {"adapter_slots": ("q_proj", "v_proj")}},
    ],
    ids=["int8", "float16", "slots"],
)
def test_caches_of_every_type_are_bounded(fields, tmp_path):
    parent = save_decoder(tmp_path / "torch", *MODELS["gemma3"])
    export_decoder(parent, tmp_path / "onnx", FIELDS | fields)
    bounded, full = (
        OnnxDecoder(tmp_path / "onnx", 1, capacity=CONTEXT, drops_positions=drops)
        for drops in (True, False)
    )
    for start, end in [(0, 300), *((position, position + 1) for position in range(300, 400))]:
        logits = [decoder.forward(TOKENS[:1, start:end])[0, -1] for decoder in (bounded, full)]
        assert np.abs(logits[0] - logits[1]).max() < 2e-3 * np.abs(logits[1]).max()
    assert bounded.kv_cache()["past_key_values.0.key"].shape[2] < CONTEXT // 2


def with_bounds(folder, target, text):
    """Save a copy of a graph with another entry of its metadata."""
    model = onnx.load(folder / "model.onnx")
    [entry] = [e for e in model.metadata_props if e.key == BOUNDED_CACHES_KEY]
    entry.value = text
    onnx.save(model, target / "model.onnx")


def test_a_graph_without_bounds_in_its_metadata_keeps_all_positions(bed, tmp_path):
    folder, expected = bed("mistral")
    with_bounds(folder / "onnx", tmp_path, "[]")
    decoder = OnnxDecoder(tmp_path, 1, capacity=CONTEXT)
    decoder.forward(TOKENS[:1, :419])
    assert_same(decoder.forward(TOKENS[:1, 419:])[0, 0], expected[0, 419])
    assert decoder.kv_cache()["past_key_values.0.key"].shape[2] == 420


@pytest.mark.parametrize("entry", ["{}", '{"window": 32, "sinks": 0, "caches": ["other"]}'])
def test_damaged_bounds_are_an_error(entry, bed, tmp_path):
    with_bounds(bed("mistral")[0] / "onnx", tmp_path, f"[{entry}]")
    with pytest.raises(ModelError, match="bounded_caches of the graph's metadata is damaged"):
        OnnxDecoder(tmp_path, 1, capacity=CONTEXT)


def test_a_window_as_long_as_the_context_bounds_nothing(tmp_path):
    parent = save_decoder(tmp_path / "torch", "tiny-mistral", {"sliding_window": 400})
    export_decoder(parent, tmp_path / "onnx")
    graph = onnx.load(tmp_path / "onnx" / "model.onnx")
    assert not [value.name for value in graph.graph.input if value.name.startswith("dropped")]
    assert BOUNDED_CACHES_KEY not in {entry.key for entry in graph.metadata_props}
