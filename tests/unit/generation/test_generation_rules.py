"""Rules of generation_config.json, and the first tokens of decoders, as transformers has them."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import AutoModelForSpeechSeq2Seq, GenerationConfig
from transformers.generation.logits_process import (
    MinLengthLogitsProcessor,
    MinNewTokensLengthLogitsProcessor,
    NoBadWordsLogitsProcessor,
    NoRepeatNGramLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
)

from calibration.sources.audio import Audio, AudioConfig
from compressor.data.contract import SourceContext
from compressor.errors import DataError, ModelError, UsageError
from compressor.evaluation.accuracy import GeneratingModel, measure_accuracy
from compressor.evaluation.records import AccuracyConfig
from compressor.evaluation.transcripts import edit_distance, normalized
from compressor.generation.generate import generate, model_at
from compressor.generation.prompt import Prompt
from compressor.generation.requests import SamplingOptions
from compressor.models.checkpoint.decoder_start import decoder_start, language_tokens
from compressor.models.checkpoint.generation_rules import (
    GenerationRules,
    read_end_tokens,
    read_generation_rules,
)
from compressor.models.families.transformers.feature_extractor import FeatureExtractor
from compressor.runtimes.token_rules import TokenRules
from tests.support.decoders import export_decoder
from tests.support.speech import write_wav
from tests.support.speech_models import END, LANGUAGES, START, multilingual, save_speech_model

GREEDY = SamplingOptions(max_tokens=10, temperature=0.0, top_p=1.0, seed=0)
NOISE_V = np.random.default_rng(0).normal(size=12).astype(np.float32)


def rules(**fields):
    return GenerationRules.model_validate_json(json.dumps(fields))


def changed(tokens, generated=1, **fields):
    """Return the logits after the rules of fields; the last tokens are those of the answer."""
    prompt, answer = tokens[: len(tokens) - generated], tokens[len(tokens) - generated :]
    state = TokenRules(rules(**fields), prompt, max_tokens=9, vocabulary=len(NOISE_V))
    for token in answer:
        state.commit(token)
    logits_V = NOISE_V.copy()
    state.apply(logits_V)
    assert state.change_next() or (logits_V == NOISE_V).all()
    return logits_V


def excluded(tokens, generated=1, **fields):
    allowed_V = changed(tokens, generated, eos_token_id=2, **fields)
    return np.flatnonzero(np.isneginf(allowed_V)).tolist()


def test_tokens_that_may_not_follow_have_no_probability():
    assert excluded([0, 5], suppress_tokens=[3, 4, -1, 99]) == [3, 4]
    assert excluded([0], generated=0, begin_suppress_tokens=[7]) == [7]
    assert excluded([0, 5], begin_suppress_tokens=[7]) == []
    assert excluded([0, 5, 6], bad_words_ids=[[1], [2], [5, 6, 8], [6, 9], [5, 10]]) == [1, 8, 9]
    assert excluded([5, 6, 7, 5, 6], no_repeat_ngram_size=3) == [7]
    assert excluded([5, 6], no_repeat_ngram_size=1) == [5, 6]
    assert excluded([0, 5], min_length=3) == [2]
    assert excluded([0, 5], min_new_tokens=1) == []
    assert changed([0] * 9, 8, forced_eos_token_id=2).argmax() == 2


def test_a_penalty_makes_repetition_less_probable():
    tokens = [3, 3, 4, 99, -1, *range(11)]
    logits_V = changed(tokens[:5], repetition_penalty=2.0)
    expected_V = NOISE_V.copy()
    expected_V[[3, 4]] *= np.where(NOISE_V[[3, 4]] < 0, 2.0, 0.5)
    np.testing.assert_allclose(logits_V, expected_V)


@pytest.mark.parametrize(
    ("fields", "processor"),
    [
        ({"repetition_penalty": 1.7}, RepetitionPenaltyLogitsProcessor(1.7)),
        ({"no_repeat_ngram_size": 2}, NoRepeatNGramLogitsProcessor(2)),
        (
            {"bad_words_ids": [[1], [2, 3], [4, 5, 6], [7, 8]]},
            NoBadWordsLogitsProcessor([[1], [2, 3], [4, 5, 6], [7, 8]], torch.tensor([0])),
        ),
        (
            {"min_new_tokens": 4, "eos_token_id": [2, 3]},
            MinNewTokensLengthLogitsProcessor(8, 4, torch.tensor([2, 3])),
        ),
        (
            {"min_length": 12, "eos_token_id": [2, 3]},
            MinLengthLogitsProcessor(12, torch.tensor([2, 3])),
        ),
    ],
)
def test_rules_change_the_logits_as_in_transformers(fields, processor):
    tokens = np.random.default_rng(3).integers(1, 12, 38)
    for length in range(8, len(tokens)):
        scores = processor(torch.from_numpy(tokens[None, :length]), torch.from_numpy(NOISE_V[None]))
        logits_V = changed(tokens[:length].tolist(), length - 8, **fields)
        np.testing.assert_allclose(logits_V, scores[0].numpy(), rtol=1e-6)


def test_damaged_rules_are_named(tmp_path):
    (tmp_path / "generation_config.json").write_text('{"suppress_tokens": ["a"]}')
    with pytest.raises(ModelError, match=r"generation_config.json: `suppress_tokens.*'a'"):
        read_generation_rules(tmp_path)


@pytest.fixture(scope="module", params=["whisper", "speech_to_text", "moonshine"])
def speech(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    fields = multilingual() if request.param == "whisper" else {}
    parent = save_speech_model(folder / "torch", request.param, **fields)
    (folder / "recordings").mkdir()
    for index in range(2):
        write_wav(folder / f"recordings/r{index}.wav", 0.5 + 0.3 * index, seed=index)
        (folder / f"recordings/r{index}.txt").write_text("w20 w21 w22")
    dataset = Audio().load(
        AudioConfig(source="audio", path="recordings", processor="torch"),
        SourceContext(base=folder, cache=folder / "cache", allow_code=False, note=lambda _: None),
    )
    runtimes = ["torch"]
    if request.param == "moonshine":  # the rules are the same; exports take long
        export_decoder(parent, folder / "onnx", {"parity": {"data": "text"}}, dataset)
        runtimes.append("onnx")
    return folder, dataset, runtimes


def transformers_tokens(folder, arrays, **options):
    """Return the tokens of transformers' own ``generate``, up to the end of the text."""
    module = AutoModelForSpeechSeq2Seq.from_pretrained(folder / "torch")
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    limits = {"max_new_tokens": 10, "do_sample": False, "num_beams": 1}
    tokens = module.generate(**tensors, **limits, **options)[0].tolist()
    tokens = tokens[len(tokens) - 10 :] if END not in tokens else tokens
    return tokens[: tokens.index(END)] if END in tokens else tokens


def test_recordings_become_the_text_that_transformers_generates(speech):
    folder, _, runtimes = speech
    file = folder / "recordings/r1.wav"
    arrays = FeatureExtractor(folder / "torch").encode([file])
    choices = [{}, {"language": "de"}, {"language": "french", "task": "translate"}]
    texts = []
    for options in choices if language_tokens(folder / "torch") else [{}]:
        expected = transformers_tokens(folder, arrays, **options)
        spelled = " ".join(
            f"w{token}" for token in expected if token not in {1, 2, 3, *range(80, 86)}
        )
        texts.append(spelled)
        for runtime in runtimes:
            prompt = Prompt("", audio=file, **options)
            stored = model_at(folder / runtime)
            generated = generate(stored, prompt, GREEDY, threads=1, on_text=lambda _: None)
            assert generated.text == spelled
    assert len(texts) == 1 or len(set(texts)) > 1


def test_the_error_rates_of_generated_texts_are_those_of_transformers(speech):
    folder, dataset, runtimes = speech
    config = AccuracyConfig(data="speech", metrics=("wer", "cer"), max_tokens=10, bootstrap=0)
    errors = 0
    for row in range(2):  # alone: models without a mask must not hear the padding
        arrays = FeatureExtractor(folder / "torch").encode([folder / f"recordings/r{row}.wav"])
        text = dataset.spell(transformers_tokens(folder, arrays))
        errors += edit_distance(text.split(), ["w20", "w21", "w22"])
    for runtime in runtimes:
        stored = model_at(folder / runtime)
        with stored.open_session(1) as session:
            report = measure_accuracy(
                session, dataset, config, lambda *_: None, generating=GeneratingModel(stored, 1)
            )
            assert report.metrics[0].value == pytest.approx(errors / 6)
            with pytest.raises(UsageError, match="need the whole model"):
                measure_accuracy(session, dataset, config, lambda *_: None)


def write_settings(folder, fields):
    (folder / "config.json").write_text("{}")
    settings = {"decoder_start_token_id": START} | fields
    (folder / "generation_config.json").write_text(json.dumps(settings))
    return folder


def test_first_tokens_follow_language_and_task(tmp_path):
    folder = write_settings(tmp_path, multilingual())
    start = decoder_start(folder)
    assert start.tokens == (START, 83, 85) and start.languages == tuple(LANGUAGES.values())
    assert decoder_start(folder, language="en").tokens == (START, 80, 83, 85)
    assert decoder_start(folder, language="German", task="translate").tokens == (START, 81, 84, 85)
    with pytest.raises(UsageError, match="no token for the language 'dutch'"):
        decoder_start(folder, language="dutch")
    with pytest.raises(UsageError, match="no token for the task 'sing'"):
        decoder_start(folder, task="sing")


def test_a_model_of_one_language_has_no_tokens_for_it(tmp_path):
    folder = write_settings(
        tmp_path, {"no_timestamps_token_id": 85, "forced_decoder_ids": [[1, 85]]}
    )
    assert decoder_start(folder).tokens == (START, 85)
    with pytest.raises(UsageError, match="no token for the language 'en'"):
        decoder_start(folder, language="en")
    write_settings(tmp_path, {"forced_decoder_ids": 5})
    with pytest.raises(DataError, match="`forced_decoder_ids` is 5"):
        decoder_start(folder)


def test_texts_are_normalized_without_case_punctuation_and_brackets():
    assert normalized("[noise] Hello, WORLD! (laughs)").split() == ["hello", "world"]


def test_fields_of_generated_texts_need_their_metrics():
    with pytest.raises(ValueError, match="`normalize` have no effect"):
        AccuracyConfig(data="x", metrics=("top1",), normalize=True)


def test_generation_config_of_transformers_knows_the_rules():
    known = vars(GenerationConfig()).keys()
    assert GenerationRules.model_fields.keys() <= known


@pytest.mark.parametrize(
    ("files", "ends"),
    [
        ({"generation_config": {"eos_token_id": [5, 6]}, "config": {"eos_token_id": 7}}, {5, 6, 7}),
        ({"generation_config": {}, "config": {"text_config": {"eos_token_id": [8, 9]}}}, {8, 9}),
        ({"config": {"eos_token_id": None, "text_config": {"eos_token_id": 4}}}, {4}),
        ({}, set()),
    ],
)
@pytest.mark.parametrize("of_tokenizer", [None, 3])
def test_an_answer_ends_with_the_tokens_of_every_file(files, ends, of_tokenizer, tmp_path):
    for name, tree in files.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(tree))
    tokenizer = SimpleNamespace(eos_token_id=of_tokenizer)
    expected = ends if of_tokenizer is None else ends | {of_tokenizer}
    assert read_end_tokens(tmp_path, tokenizer) == expected
