"""Tests of generation from encoder-decoders of text and speech, in torch and ONNX Runtime."""

import json
import shutil

import numpy as np
import pytest
import torch

from calibration.sources.arrays import ArrayDataset
from calibration.sources.audio import Audio, AudioConfig
from compressor.data.contract import SourceContext
from compressor.errors import DataError, ModelError, UsageError
from compressor.generation.conversation import open_chat_model
from compressor.generation.generate import generate, model_at
from compressor.generation.prompt import Prompt
from compressor.generation.requests import SamplingOptions
from compressor.models.checkpoint.loading import load_module
from compressor.models.families.transformers.feature_extractor import FeatureExtractor
from tests.support.decoders import export_decoder
from tests.support.encoder_classes import CLASSES
from tests.support.speech import save_encoder_decoder, write_wav

GREEDY = SamplingOptions(max_tokens=8, temperature=0.0, top_p=1.0, seed=0)


def text_of(folder, prompt):
    return generate(model_at(folder), prompt, GREEDY, threads=1, on_text=lambda _: None).text


def words(tokens):
    return " ".join(f"w{token}" for token in tokens if token)


@pytest.fixture(scope="module")
def translator(tmp_path_factory):
    folder = tmp_path_factory.mktemp("translator")
    parent = save_encoder_decoder(folder / "torch", "t5")
    arrays = {name: value.numpy() for name, value in CLASSES["t5"].batch(3).items()}
    output, notes = export_decoder(
        parent, folder / "onnx", {"parity": {"data": "text"}}, ArrayDataset(arrays, tuple(arrays))
    )
    return folder, output, notes


def test_an_encoder_decoder_is_two_graphs_that_are_compared_in_three_ways(translator):
    folder, output, notes = translator
    assert {file.name for file in (folder / "onnx").glob("*.onnx")} == {
        "encoder.onnx",
        "model.onnx",
    }
    assert [way["way"] for way in output.summary["parity"]] == [
        "whole",
        "token by token",
        "in batches",
    ]
    assert max(way["max_abs"] for way in output.summary["parity"]) < 1e-4
    assert not notes


def test_text_becomes_the_text_that_transformers_generates(translator):
    folder = translator[0]
    ids = torch.tensor([[10, 11, 12, 40]])
    expected = load_module(folder / "torch").generate(
        ids, max_new_tokens=8, do_sample=False, eos_token_id=None
    )[0, 1:]
    for name in ("torch", "onnx"):
        assert text_of(folder / name, Prompt("w10 w11 w12 w40")) == words(expected.tolist())


def test_a_target_may_have_another_length_than_its_text(translator):
    arrays = {
        "input_ids": np.array([[10, 11, 12]]),
        "attention_mask": np.ones((1, 3), np.int64),
        "decoder_input_ids": np.array([[0, 20]]),
    }
    logits = []
    for name in ("torch", "onnx"):
        with model_at(translator[0] / name).open_session(1) as session:
            logits.append(session.run(arrays)["logits"])
    np.testing.assert_allclose(*logits, atol=1e-4)


def test_wrong_kinds_of_prompts_are_refused(translator):
    folder = translator[0]
    with pytest.raises(UsageError, match="takes text"):
        text_of(folder / "onnx", Prompt("w10", audio=folder / "a.wav"))
    with pytest.raises(UsageError, match="prompt is empty"):
        text_of(folder / "onnx", Prompt(""))
    with pytest.raises(UsageError, match=r"is an encoder-decoder, .* holds no conversation"):
        open_chat_model(model_at(folder / "onnx"), threads=1)


@pytest.fixture(scope="module")
def listener(tmp_path_factory):
    folder = tmp_path_factory.mktemp("listener")
    parent = save_encoder_decoder(folder / "torch", "whisper")
    recordings = folder / "recordings"
    recordings.mkdir()
    for index in range(3):
        write_wav(recordings / f"r{index}.wav", 0.6, seed=index)
        (recordings / f"r{index}.txt").write_text("w20 w21 w22"[: 7 + 4 * (index > 0)])
    dataset = Audio().load(
        AudioConfig(source="audio", path="recordings", processor="torch"),
        SourceContext(base=folder, cache=folder / "cache", allow_code=False, note=lambda _: None),
    )
    export_decoder(parent, folder / "onnx", {"parity": {"data": "text"}}, dataset)
    return folder, dataset


def test_recordings_with_transcripts_are_samples_of_a_speech_model(listener):
    _, dataset = listener
    batch = dataset.batch(np.arange(3))
    assert batch["input_features"].shape == (3, 16, 100)
    assert batch["decoder_input_ids"].tolist() == [[1, 20, 21, 0], [1, 20, 21, 22], [1, 20, 21, 22]]
    assert batch["label"][:2].tolist() == [[20, 21, -100], [20, 21, 22]]
    assert dataset.spell([20, 21]) == "w20 w21"


def test_a_recording_becomes_the_text_that_transformers_generates(listener):
    folder, _ = listener
    file = folder / "recordings" / "r1.wav"
    features = FeatureExtractor(folder / "torch").encode([file])["input_features"]
    expected = load_module(folder / "torch").generate(
        torch.from_numpy(features), max_new_tokens=8, do_sample=False, eos_token_id=None
    )[0]
    tokens = [token for token in expected.tolist() if token > 2]
    for name in ("torch", "onnx"):
        assert text_of(folder / name, Prompt("", audio=file)) == words(tokens)


def test_another_sampling_rate_is_refused(listener, tmp_path):
    file = write_wav(tmp_path / "slow.wav", 0.3, rate_hz=8000)
    with pytest.raises(DataError, match="8000 samples per second; the model takes 16000") as caught:
        text_of(listener[0] / "onnx", Prompt("", audio=file))
    assert "ffmpeg" in caught.value.remedy


def test_a_model_that_fails_on_what_its_processor_makes_is_an_error_of_the_folder(
    listener, tmp_path
):
    folder = shutil.copytree(listener[0] / "torch", tmp_path / "torch")
    config = json.loads((folder / "preprocessor_config.json").read_text())
    longer = {**config, "chunk_length": 2, "n_samples": 32000, "nb_max_frames": 200}
    (folder / "preprocessor_config.json").write_text(json.dumps(longer))
    file = listener[0] / "recordings" / "r1.wav"
    with pytest.raises(ModelError, match="torch fails on this prompt: Whisper expects"):
        text_of(folder, Prompt("", audio=file))
