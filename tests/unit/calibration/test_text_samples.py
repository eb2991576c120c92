"""The data source ``text-samples``: tokens, masks and labels of every form."""

import json

import numpy as np
import pytest
from pydantic import ValidationError

from calibration.sources.text_samples import TextSamples, TextSamplesConfig
from compressor.data.contract import InputFacts, SourceContext, StarterInputs
from compressor.errors import DataError
from tests.support.text_checkpoints import write_records, write_word_tokenizer

SOURCE = TextSamples()


@pytest.fixture
def folder(tmp_path):
    write_word_tokenizer(tmp_path / "model")
    return tmp_path


def load(folder, *records, **fields):
    write_records(folder / "texts.jsonl", *records)
    config = TextSamplesConfig(
        source="text-samples", path="texts.jsonl", tokenizer="model", **fields
    )
    context = SourceContext(folder)
    assert SOURCE.problems(config, context) == []
    return SOURCE.load(config, context)


def batch_of(dataset):
    return dataset.batch(np.arange(len(dataset)))


def test_texts_are_padded_to_the_longest_and_masked(folder):
    dataset = load(
        folder, {"text": "w7 w8 w9"}, {"text": "w10"}, {"text": "w11 " * 20}, sequence_length=6
    )
    batch = batch_of(dataset)
    assert dataset.input_names == ("input_ids", "attention_mask")
    assert dataset.label_name is None
    assert batch["input_ids"].tolist() == [
        [1, 7, 8, 9, 2, 0],
        [1, 10, 2, 0, 0, 0],
        [1, 11, 11, 11, 11, 2],
    ]
    assert batch["attention_mask"].tolist()[1] == [1, 1, 1, 0, 0, 0]


def test_pairs_have_token_types_and_scores_are_floats(folder):
    records = (
        {"query": "w7", "passage": "w8 w9", "score": 0.5},
        {"query": "w7", "passage": "w8", "score": 2},
    )
    dataset = load(folder, *records, field="query", pair="passage", label="score", token_types=True)
    batch = batch_of(dataset)
    assert batch["input_ids"].tolist()[0] == [1, 7, 2, 8, 9, 2]
    assert batch["token_type_ids"].tolist() == [[0, 0, 0, 1, 1, 1], [0, 0, 0, 1, 1, 0]]
    assert batch["label"].dtype == np.float32
    assert batch["label"].tolist() == [0.5, 2.0]


def test_class_names_are_numbered_by_the_checkpoint_or_else_sorted(folder):
    records = ({"text": "w7", "label": "good"}, {"text": "w8", "label": "bad"})
    dataset = load(folder, *records, label="label")
    assert batch_of(dataset)["label"].tolist() == [1, 0]
    config = {"label2id": {"good": 0, "bad": 1, "unclear": 2}}
    (folder / "model" / "config.json").write_text(json.dumps(config))
    dataset = load(folder, *records, label="label")
    assert batch_of(dataset)["label"].tolist() == [0, 1]
    assert dataset.class_names() == ("good", "bad", "unclear")


def test_the_first_token_of_a_word_has_its_label(folder):
    records = ({"words": ["w7", "w8"], "tags": [3, 1]}, {"words": ["w9"], "tags": [2]})
    dataset = load(folder, *records, field="words", label="tags")
    assert batch_of(dataset)["label"].tolist() == [[-100, 3, 1, -100], [-100, 2, -100, -100]]


def test_masked_tokens_are_the_labels_and_the_seed_decides_them(folder):
    records = [{"text": " ".join(f"w{number}" for number in range(10, 30))}] * 8
    batch = batch_of(load(folder, *records, masked=0.2))
    chosen = batch["label"] != -100
    assert (batch["input_ids"][chosen] == 3).all()
    assert not chosen[:, [0, -1]].any()
    assert chosen.any(axis=1).all()
    assert 0.1 < chosen.mean() < 0.3
    assert (batch["label"][chosen] >= 10).all()
    again = batch_of(load(folder, *records, masked=0.2))
    other = batch_of(load(folder, *records, masked=0.2, seed=1))
    assert (again["input_ids"] == batch["input_ids"]).all()
    assert (other["input_ids"] != batch["input_ids"]).any()


def test_targets_are_shifted_behind_the_start_token(folder):
    (folder / "model" / "config.json").write_text(json.dumps({"decoder_start_token_id": 5}))
    records = ({"text": "w7", "target": "w8 w9"}, {"text": "w7", "target": "w8"})
    batch = batch_of(load(folder, *records, target="target"))
    assert batch["decoder_input_ids"].tolist() == [[5, 1, 8, 9], [5, 1, 8, 0]]
    assert batch["label"].tolist() == [[1, 8, 9, 2], [1, 8, 2, -100]]


@pytest.mark.parametrize(
    ("record", "fields", "message"),
    [
        ({"body": "w7"}, {}, "no field 'text'; the record has the fields 'body'"),
        ({"text": "w7", "label": None}, {"label": "label"}, "'label' is null, not the number"),
        ({"text": "w7", "tags": [1]}, {"label": "tags"}, "is no list of words"),
        ({"text": ["w7"], "tags": [1, 2]}, {"label": "tags"}, "2 labels for 1 words"),
    ],
)
def test_records_of_another_form_are_named(folder, record, fields, message):
    write_records(folder / "texts.jsonl", record)
    config = TextSamplesConfig(
        source="text-samples", path="texts.jsonl", tokenizer="model", **fields
    )
    assert any(message in problem for problem in SOURCE.problems(config, SourceContext(folder)))
    with pytest.raises(DataError, match=message.split(";")[0]):
        SOURCE.load(config, SourceContext(folder))


def test_names_and_numbers_do_not_mix(folder):
    with pytest.raises(DataError, match="labels are names, such as 'good', and numbers"):
        load(folder, {"text": "w7", "label": "good"}, {"text": "w7", "label": 1}, label="label")


def test_two_kinds_of_labels_are_refused():
    with pytest.raises(ValidationError, match="`label` and `masked` give different labels"):
        TextSamplesConfig(source="text-samples", path="a", tokenizer="b", label="label", masked=0.1)


def test_a_starter_adds_what_the_model_requires(folder):
    def inputs(*names):
        facts = tuple(InputFacts(name, "int64", (None,)) for name in names)
        return StarterInputs(folder / "model", facts, frozenset(names), longest=64)

    assert SOURCE.starter(inputs("input_ids")) is None
    starter = SOURCE.starter(
        inputs("input_ids", "attention_mask", "token_type_ids", "decoder_input_ids")
    )
    assert starter is not None
    assert starter.inputs >= {"token_type_ids", "decoder_input_ids"}
    assert (starter.fields["token_types"], starter.fields["target"]) == (True, "target")
    assert starter.fields["sequence_length"] == 64
