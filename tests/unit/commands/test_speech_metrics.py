"""Error rates of words through the command line: a CTC model as it is published, and mistakes."""

import json
import re

import numpy as np
import pytest
import transformers

from compressor.models.families.transformers.feature_extractor import FeatureExtractor
from compressor.runtimes.formats import open_session
from tests.support.encoder_classes import CLASSES, TinyClass
from tests.support.forked import run_forked
from tests.support.speech import write_wav
from tests.support.speech_models import save_speech_model

TEXT = "HELLO"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return a folder with a CTC model, whose tokenizer is a vocab.json, and recordings."""
    folder = tmp_path_factory.mktemp("ctc")
    case = CLASSES["wav2vec2"]
    case = TinyClass("Wav2Vec2ForCTC", case.model_type, case.inputs, case.fields)
    case.build().save_pretrained(folder / "model")
    letters = [chr(ord("A") + index) for index in range(26)]
    tokens = ["<pad>", "<s>", "</s>", "<unk>", "|", *letters]
    vocabulary = folder / "vocab.json"
    vocabulary.write_text(json.dumps({token: number for number, token in enumerate(tokens)}))
    transformers.Wav2Vec2CTCTokenizer(str(vocabulary)).save_pretrained(folder / "model")
    transformers.Wav2Vec2FeatureExtractor(return_attention_mask=True).save_pretrained(
        folder / "model"
    )
    (folder / "recordings").mkdir()
    for index in range(2):
        write_wav(folder / f"recordings/r{index}.wav", 0.3, seed=index)
        (folder / f"recordings/r{index}.txt").write_text(TEXT)
    return folder


def write_pipeline(folder, metrics="[wer, cer]", **fields):
    speech = {"source": "audio", "path": "recordings", "processor": "model"} | fields
    file = folder / "pipeline.yaml"
    file.write_text(
        "version: 1\nname: ctc\nmodel: {path: model}\n"
        f"data: {{speech: {json.dumps(speech)}}}\n"
        f"evaluate: {{accuracy: {{data: speech, metrics: {metrics}}}}}\n"
    )
    return file


def test_a_ctc_model_with_a_vocabulary_alone_is_measured(folder):
    outcome = run_forked("run", write_pipeline(folder), "-o", folder / "store")
    assert outcome.code == 0, outcome.printed
    [report] = (folder / "store").glob("source-*/reports/accuracy.json")
    metrics = {metric["name"]: metric for metric in json.loads(report.read_text())["metrics"]}
    assert set(metrics) == {"wer", "cer"} and metrics["wer"]["value"] > 0


@pytest.mark.parametrize(
    ("metrics", "fields", "message"),
    [
        ("[wer]", {"language": "en"}, "the model of .* has no decoder"),
        ("[wer]", {"procesor": "model"}, "unknown key 'procesor'"),
        ("[wer]", {"path": "silent"}, "wer"),
        ("[wer], max_tokens: 10", {}, "no effect of `max_tokens`: the model has no decoder"),
        ("['recall@1']", {}, "recall@1 is of retrieval by embeddings"),
        ("['wer:hidden']", {}, "scores `hidden`, and the model has the outputs logits"),
    ],
)
def test_mistakes_are_errors_of_the_plan(folder, metrics, fields, message):
    (folder / "silent").mkdir(exist_ok=True)
    write_wav(folder / "silent/r0.wav", 0.3)
    outcome = run_forked("plan", write_pipeline(folder, metrics, **fields))
    assert outcome.code == 2 and "Traceback" not in outcome.printed
    assert re.search(message, " ".join(outcome.printed.split())), outcome.printed


def test_metrics_of_generated_text_need_a_graph_that_generates(tmp_path):
    save_speech_model(tmp_path / "model", "whisper")
    (tmp_path / "recordings").mkdir()
    write_wav(tmp_path / "recordings/r0.wav", 0.3)
    (tmp_path / "recordings/r0.txt").write_text("w20")
    file = write_pipeline(tmp_path)
    samples = "data: speech, num_samples: 1, batch_size: 2"
    steps = f"passes:\n- {{type: qat, calibration: {{{samples}}}}}\n"
    file.write_text(file.read_text() + steps)
    assert run_forked("plan", file).code == 0
    file.write_text(file.read_text() + f"- {{type: export-onnx, parity: {{{samples}}}}}\n")
    outcome = run_forked("plan", file)
    assert outcome.code == 2 and "whose activations are rounded" in outcome.printed
    file.write_text(file.read_text().replace("export-onnx,", "export-onnx, measure: false,"))
    assert run_forked("plan", file).code == 0


def test_padding_is_masked_where_the_model_was_trained_with_masks(folder):
    file = write_pipeline(folder)
    samples = "{data: speech, num_samples: 2, batch_size: 2}"
    file.write_text(file.read_text() + f"passes:\n- {{type: qat, calibration: {samples}}}\n")
    outcome = run_forked("plan", file)
    assert outcome.code == 0, outcome.printed
    write_wav(folder / "short.wav", 0.2, seed=5)
    write_wav(folder / "long.wav", 0.4, seed=6)
    extractor = FeatureExtractor(folder / "model")
    alone, together = (
        extractor.encode([folder / name for name in names])
        for names in (["short.wav"], ["short.wav", "long.wav"])
    )
    with open_session("torch", folder / "model", threads=1) as session:
        expected_TC = session.run(alone)["logits"][0]
        actual_TC = session.run(together)["logits"][0, : len(expected_TC)]
    np.testing.assert_allclose(actual_TC, expected_TC, atol=1e-4)
