"""Data source text: records in any container, conversations through the chat template."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from calibration.sources.text import Text, TextConfig
from compressor.data.contract import SourceContext
from compressor.errors import DataError
from tests.support.record_files import write_json, write_table, write_text

WORDS = ["[?]", "a", "b", "c", "<bos>", "<user>", "<assistant>", "<system>", "<end>", "26", "2024"]
TEMPLATE = (
    "{{ bos_token }} {% for message in messages %}"
    "{% if message.role == 'system' and not loop.first %}"
    "{{ raise_exception('system comes first') }}{% endif %}"
    "<{{ message.role }}> {{ message.content }} <end> {% endfor %}"
)
TURNS = [{"role": "user", "content": "a b"}, {"role": "assistant", "content": "c"}]
SHAREGPT = [{"from": "human", "value": "a b"}, {"from": "gpt", "value": "c"}]
TALK = ["<user>", "a", "b", "<end>", "<assistant>", "c", "<end>"]


def write_tokenizer(folder: Path, template: Any = TEMPLATE) -> None:
    tokenizer = Tokenizer(WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[?]"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    tokenizer.post_processor = TemplateProcessing("<bos> $A", special_tokens=[("<bos>", 4)])
    tokenizer.enable_truncation(3)  # as some published tokenizers are saved
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<bos>", chat_template=template
    ).save_pretrained(folder)


def config_of(**fields: Any) -> TextConfig:
    defaults = {"path": "talks.jsonl", "tokenizer": ".", "sequence_length": 7}
    return TextConfig(source="text", **(defaults | fields))


def words(folder: Path, **fields: Any) -> list[list[str]]:
    config, context = config_of(**fields), SourceContext(folder)
    assert Text().problems(config, context) == []
    samples = Text().load(config, context)
    rows = samples.batch(np.arange(len(samples)))
    ids = np.concatenate([rows["input_ids"], rows["label"][:, -1:]], axis=1)
    return [[WORDS[token] for token in row] for row in ids.tolist()]


@pytest.mark.parametrize(
    "record",
    [
        {"messages": TURNS},
        {"conversations": SHAREGPT, "id": "1"},
        {"instruction": "a", "input": "b", "output": "c"},
    ],
)
def test_conversations_are_rendered_by_the_chat_template(
    record: dict[str, Any], tmp_path: Path
) -> None:
    write_tokenizer(tmp_path)
    write_json(tmp_path / "talks.jsonl", [record, record])
    assert words(tmp_path) == [["<bos>", *TALK], ["<bos>", *TALK]]


def test_conversations_of_parquet_are_rendered(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    write_tokenizer(tmp_path)
    table = pyarrow.Table.from_pylist([{"messages": TURNS}])
    parquet.write_table(table, tmp_path / "talks.parquet")
    assert words(tmp_path, path="talks.parquet") == [["<bos>", *TALK]]


@pytest.mark.parametrize("name", ["r.csv", "r.tsv", "r.json", "r.JSONL", "r.ndjson", "r.jsonl.gz"])
def test_texts_of_records_are_joined_by_line_breaks(name: str, tmp_path: Path) -> None:
    records = [{"body": "one", "n": "1"}, {"body": "", "n": "2"}, {"body": "two", "n": "3"}]
    writer = write_table if name[-3:] in {"csv", "tsv"} else write_json
    notes: list[str] = []
    writer(tmp_path / name, records)
    config = config_of(path=name, field="body", tokenizer=None, sequence_length=8)
    context = SourceContext(tmp_path, note=notes.append)
    assert Text().problems(config, context) == []
    tokens = Text().load(config, context).batch(np.arange(1))["tokens"]
    assert bytes((tokens[0] - 1).tolist()) == b"one\n\ntwo"
    assert notes == [f"{tmp_path / name}: 1 of 3 texts are blank; they stay blank lines"]


def test_a_file_is_not_truncated_where_its_tokenizer_truncates(tmp_path: Path) -> None:
    write_tokenizer(tmp_path)
    write_text(tmp_path / "a.txt", "a b c a b c a b c")
    assert words(tmp_path, path="a.txt", sequence_length=3) == [
        ["<bos>", "a", "b", "c"],
        ["<bos>", "a", "b", "c"],
        ["<bos>", "a", "b", "c"],
    ]


def test_the_date_of_a_template_is_fixed(tmp_path: Path) -> None:
    write_tokenizer(tmp_path, "\n{{ strftime_now('%d') }} {{ strftime_now('%Y') }} " + TEMPLATE)
    write_json(tmp_path / "talks.jsonl", [{"messages": TURNS}])
    assert words(tmp_path, sequence_length=9) == [["<bos>", "26", "2024", "<bos>", *TALK][:10]]


@pytest.mark.parametrize(
    ("records", "message"),
    [
        ([{"text": None}], ":1: 'text' is null, not text"),
        ([{"text": "a"}, {"text": 3}], ":2: 'text' is the number 3, not text"),
        ([{"text": ["a", "b"]}], ":1: 'text' is a list, not text"),
        ([{"text": {"a": 1}}], ":1: 'text' is an object, not text"),
        ([{"text": True}], ":1: 'text' is true, not text"),
        ([{"body": "a"}], ":1: no field 'text'; the record has the fields 'body': set `field`"),
        ([{"text": "a", "messages": TURNS}], ":1: has 'text' and 'messages': set `field`"),
        ([{"text": "a"}, {"messages": TURNS}], ":2: a conversation, but .* first record is a text"),
        ([{"messages": TURNS}, {"text": "a"}], ":2: a text, but .* first record is a conversation"),
        ([{"messages": [{"role": "user", "content": None}]}], ":1: messages.0.: 'content' is null"),
        ([{"messages": TURNS, "prompt": "a"}], ":1: unknown key 'prompt': set `field: messages`"),
        ([{"text": "half \ud800"}], "half of a surrogate pair"),
        ([], "holds no records|is empty"),
    ],
)
def test_records_without_one_text_are_named_while_planning_and_loading(
    records: list[Any], message: str, tmp_path: Path
) -> None:
    write_tokenizer(tmp_path)
    write_json(tmp_path / "talks.jsonl", records, ascii_only=True)
    config, context = config_of(), SourceContext(tmp_path)
    (problem,) = Text().problems(config, context)
    with pytest.raises(DataError, match=message):
        raise DataError(problem)
    with pytest.raises(DataError, match=message.split("|")[0]):
        Text().load(config, context)


def test_records_in_a_file_that_is_read_as_text_are_noted(tmp_path: Path) -> None:
    notes: list[str] = []
    context = SourceContext(tmp_path, note=notes.append)
    write_json(tmp_path / "a.txt", [{"text": "a"}] * 2)
    assert Text().problems(config_of(path="a.txt", tokenizer=None), context) == []
    assert "starts with a JSON record, and is read as text" in notes[0]


def test_field_chooses_between_text_and_messages(tmp_path: Path) -> None:
    write_tokenizer(tmp_path)
    record = {"text": "a b c a b c a", "messages": TURNS, "prompt": "a"}
    write_json(tmp_path / "talks.jsonl", [record])
    assert words(tmp_path, field="text") == [["<bos>", "a", "b", "c", "a", "b", "c", "a"]]
    assert words(tmp_path, field="messages") == [["<bos>", *TALK]]


def test_a_picture_is_an_error(tmp_path: Path) -> None:
    write_tokenizer(tmp_path)
    (tmp_path / "a.png").write_bytes(b"x")
    part = {"type": "image", "path": "a.png"}
    for record in (
        {"messages": [{"role": "user", "content": [part]}]},
        {"messages": [{"role": "user", "content": "<image>"}], "images": ["a.png"]},
    ):
        write_json(tmp_path / "talks.jsonl", [record])
        for config in (config_of(), config_of(field="messages")):
            (problem,) = Text().problems(config, SourceContext(tmp_path))
            assert "holds an image" in problem


@pytest.mark.parametrize(
    ("template", "tokenizer", "message"),
    [
        (None, ".", "has no chat template"),
        ({"rag": TEMPLATE}, ".", "has the chat templates rag, and none named default"),
        (TEMPLATE, None, "conversations need a chat template: set `tokenizer`"),
        (TEMPLATE, "other.json", "conversations need a tokenizer's folder"),
    ],
)
def test_conversations_without_a_chat_template_are_refused(
    template: Any, tokenizer: str | None, message: str, tmp_path: Path
) -> None:
    write_tokenizer(tmp_path, template)
    (tmp_path / "other.json").write_bytes((tmp_path / "tokenizer.json").read_bytes())
    write_json(tmp_path / "talks.jsonl", [{"messages": TURNS}])
    config, context = config_of(tokenizer=tokenizer), SourceContext(tmp_path)
    (problem,) = Text().problems(config, context)
    assert message in problem
    with pytest.raises(DataError, match=message):
        Text().load(config, context)


@pytest.mark.parametrize("form", ["string", "list", "file", "additional file"])
def test_every_place_of_a_chat_template_is_found(form: str, tmp_path: Path) -> None:
    write_tokenizer(tmp_path, None)
    file = tmp_path / "tokenizer_config.json"
    tree = json.loads(file.read_text())
    if form == "string":
        tree["chat_template"] = TEMPLATE
    elif form == "list":
        named = {"rag": "x", "default": TEMPLATE}
        tree["chat_template"] = [{"name": name, "template": t} for name, t in named.items()]
    else:
        (tmp_path / "chat_template.jinja").write_text(TEMPLATE)
    if form == "additional file":
        (tmp_path / "additional_chat_templates").mkdir()
        (tmp_path / "additional_chat_templates" / "rag.jinja").write_text("x")
    file.write_text(json.dumps(tree))
    write_json(tmp_path / "talks.jsonl", [{"messages": TURNS}])
    assert words(tmp_path) == [["<bos>", *TALK]]


def test_conversations_that_the_template_refuses_are_named(tmp_path: Path) -> None:
    write_tokenizer(tmp_path)
    late = [*TURNS, *TURNS, {"role": "system", "content": "a"}]
    write_json(tmp_path / "talks.jsonl", [{"messages": TURNS}, {"messages": late}])
    with pytest.raises(DataError, match=r"talks\.jsonl:2: the chat template fails: system comes"):
        Text().load(config_of(), SourceContext(tmp_path))


def test_the_digest_covers_the_chat_template_only_where_it_is_used(tmp_path: Path) -> None:
    write_tokenizer(tmp_path)
    write_json(tmp_path / "talks.jsonl", [{"messages": TURNS}])
    write_json(tmp_path / "texts.jsonl", [{"text": "a"}])

    def digest(path: str) -> str:
        return Text().digest(config_of(path=path), SourceContext(tmp_path))

    before = digest("talks.jsonl"), digest("texts.jsonl")
    (tmp_path / "chat_template.jinja").write_text(TEMPLATE + " ")
    after = digest("talks.jsonl"), digest("texts.jsonl")
    assert after[0] != before[0]
    assert after[1] == before[1]


def test_the_digest_covers_how_a_file_is_read(tmp_path: Path) -> None:
    for name in ("a.txt", "a.csv"):
        write_text(tmp_path / name, "text\nabc\n")
    digests = {
        Text().digest(config_of(path=name, tokenizer=None), SourceContext(tmp_path))
        for name in ("a.txt", "a.csv")
    }
    assert len(digests) == 2


def test_an_object_too_large_to_sample_is_no_problem(tmp_path: Path) -> None:
    write_tokenizer(tmp_path)
    records = [{"messages": TURNS}] * 2000
    write_json(tmp_path / "talks.json", records, layout="wrapped")
    assert len(words(tmp_path, path="talks.json")) == len(records)
    context, config = SourceContext(tmp_path), config_of(path="talks.json")
    before = Text().digest(config, context)
    (tmp_path / "chat_template.jinja").write_text(TEMPLATE + " ")
    assert Text().digest(config, context) != before


def test_the_facts_are_those_of_the_loaded_set(tmp_path: Path) -> None:
    write_tokenizer(tmp_path)
    write_text(tmp_path / "a.txt", "a b c a b c a b c")
    for tokenizer in (None, "."):
        config = config_of(path="a.txt", tokenizer=tokenizer)
        context = SourceContext(tmp_path)
        samples, facts = Text().load(config, context), Text().facts(config, context)
        assert facts.inputs is not None
        assert tuple(input_.name for input_ in facts.inputs) == samples.input_names
        assert facts.has_labels == (samples.label_name is not None)
        for input_ in facts.inputs:
            array = samples.batch(np.arange(1))[input_.name]
            assert (str(array.dtype), array.shape[1:]) == (input_.dtype, input_.shape)
    assert facts.inputs[0].largest == len(WORDS) - 1
    assert facts.inputs[0].largest_from == str(tmp_path / "tokenizer.json")
