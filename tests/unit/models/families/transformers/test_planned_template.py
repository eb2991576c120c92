"""Chat templates as the plan renders them, compared with transformers."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

from compressor.errors import DataError
from compressor.models.families.transformers.chat_templates import (
    load_tokenizer,
    render_chat,
    with_fixed_date,
)
from compressor.models.families.transformers.planned_template import PlannedTemplate

TURNS = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
LOOP = "{% for message in messages %}{{ message.content }}{% endfor %}"
RENDERED = (
    LOOP,
    "{{ bos_token }}\n" + LOOP,
    "{{ messages | tojson(indent=1) }}",
    "{% for m in messages %}{% if loop.index > 1 %}{% break %}{% endif %}{{ m.role }}{% endfor %}",
    "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}",
    "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}"
    "{{ ns.n }}{{ dict(a=1) }}{{ strftime_now('%d %b %Y') }}",
    "{% if tools %}tools{% endif %}{% if tools is none and documents is none %}none{% endif %}",
)


def write(folder: Path, template: Any) -> Path:
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel({"a": 0}, unk_token="a")), bos_token="<s>"
    )
    tokenizer.save_pretrained(folder)
    file = folder / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"chat_template": template}))
    return folder


@pytest.mark.parametrize("template", RENDERED)
def test_what_transformers_renders_is_not_refused(tmp_path: Path, template: str) -> None:
    tokenizer = load_tokenizer(write(tmp_path, template))
    assert render_chat(tokenizer, TURNS)
    assert PlannedTemplate(tmp_path).refusal(TURNS) is None


def test_what_a_template_refuses_is_reported_in_its_words(tmp_path: Path) -> None:
    template = (
        "{% if messages[0].role != 'user' %}{{ raise_exception('start with ' + bos_token) }}"
        "{% endif %}" + LOOP
    )
    planned = PlannedTemplate(write(tmp_path, template))
    assert planned.refusal(TURNS) is None
    assert planned.refusal(TURNS[1:]) == "the chat template fails: start with <s>"
    blank = [{"role": "user", "content": " "}]
    assert planned.refusal(blank) == "the chat template renders nothing"


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{% for m in messages %}\n{{ m.content }", "is wrong in line 2: unexpected '}'"),
        ("{{ messages | nosuch }}", "is wrong in line 1: No filter named 'nosuch'"),
        ([{"name": "default"}], "`chat_template` is neither a text nor a list"),
        ([7], "`chat_template` is neither a text nor a list"),
        (7, "`chat_template` is neither a text nor a list"),
    ],
)
def test_what_is_no_template_is_refused(tmp_path: Path, template: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        PlannedTemplate(write(tmp_path, template))


def test_a_file_comes_before_the_default_template_of_the_config(tmp_path: Path) -> None:
    write(tmp_path, [{"name": "default", "template": "{{ 1 }}"}, {"name": "rag", "template": ""}])
    assert PlannedTemplate(tmp_path).refusal(TURNS) is None
    (tmp_path / "chat_template.jinja").write_text("{{ raise_exception('of the file') }}")
    assert PlannedTemplate(tmp_path).refusal(TURNS) == "the chat template fails: of the file"


@pytest.mark.parametrize(
    "template",
    [
        "{{ strftime_now('%d %b %Y') }}",
        "{% set form = '%d %b %Y' %}{{ strftime_now(form) }}",
        "{% macro head() %}{{ strftime_now('%-d') }} {{ strftime_now('%b %Y') }}{% endmacro %}"
        "{{ head() }}",
    ],
)
def test_the_date_is_the_same_every_day(tmp_path: Path, template: str) -> None:
    tokenizer = load_tokenizer(write(tmp_path, template))
    assert str(datetime.now(tz=UTC).year) in render_chat(tokenizer, TURNS)
    text = render_chat(tokenizer, TURNS, template=with_fixed_date(template))
    assert text == "26 Jul 2024"
