"""Answers that follow a schema, a regular expression, a grammar or a list of choices."""

import functools
import json
import re
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compressor.errors import MissingExtraError, UsageError
from compressor.generation.grammar import (
    GrammarVocabulary,
    grammar_from_choices,
    grammar_from_json_schema,
    grammar_from_lark,
    grammar_from_regex,
)
from compressor.generation.requests import SamplingOptions
from compressor.generation.token_selection import TokenSelector, Vocabulary
from compressor.models.checkpoint.generation_rules import GenerationRules
from tests.support.tokenizer_kinds import KINDS

END = 1
PADDING = 13
"""Logits beyond the tokenizer, as models have them whose embedding is padded."""
tokenizer_of = functools.cache(lambda kind: KINDS[kind]())
SCHEMA = {
    "type": "object",
    "properties": {
        "action": {"enum": ["Tap", "Swipe"]},
        "element": {
            "type": "array",
            "items": {"type": "integer", "minimum": 0, "maximum": 999},
            "minItems": 2,
            "maxItems": 2,
        },
    },
    "required": ["action", "element"],
    "additionalProperties": False,
}


@functools.cache
def grammar_vocabulary(kind):
    tokenizer = tokenizer_of(kind)
    return GrammarVocabulary(tokenizer, size=len(tokenizer) + PADDING, end_tokens=[END])


def random_answer(grammar, seed, kind="byte level", max_tokens=400):
    """Return the text of random logits under a grammar, and whether the grammar is complete."""
    tokenizer = tokenizer_of(kind)
    size = len(tokenizer) + PADDING
    selector = TokenSelector(
        SamplingOptions(max_tokens, temperature=1.0, seed=seed),
        Vocabulary(size, frozenset({END}), GenerationRules()),
        [],
        grammar_vocabulary(kind).matcher(grammar),
    )
    generator, tokens = np.random.default_rng(seed), []
    while not selector.is_finished and len(tokens) < max_tokens:
        tokens.append(selector.choose(generator.normal(size=size).astype(np.float32)))
    complete = selector.is_finished
    return tokenizer.decode([token for token in tokens if token != END]), complete


@pytest.mark.parametrize("kind", ["byte level", "byte fallback"])
def test_random_logits_follow_a_schema(kind):
    grammar = grammar_from_json_schema(SCHEMA)
    for seed in range(8):
        text, complete = random_answer(grammar, seed, kind)
        assert complete
        answer = json.loads(text)
        assert answer["action"] in ("Tap", "Swipe")
        assert all(0 <= value <= 999 for value in answer["element"]) and len(answer["element"]) == 2


def test_any_json_object_is_an_object():
    grammar = grammar_from_json_schema({"type": "object"})
    texts = [random_answer(grammar, seed) for seed in range(20)]
    complete = [json.loads(text) for text, complete in texts if complete]
    assert complete and all(isinstance(value, dict) for value in complete)


def test_random_logits_match_a_regular_expression_and_end():
    regex = r"(do|finish)\([0-9]{1,3}(, [a-z]+)?\)"
    for seed in range(8):
        text, complete = random_answer(grammar_from_regex(regex), seed)
        assert complete and re.fullmatch(regex, text)


def test_random_logits_follow_a_lark_grammar_with_special_tokens():
    grammar = grammar_from_lark('start: <think> /[a-z]{3}/ "</" %json {"type": "boolean"}')
    tokenizer = tokenizer_of("byte level")
    matcher = grammar_vocabulary("byte level").matcher(grammar)
    logits_V = np.zeros(len(tokenizer) + PADDING, np.float32)
    matcher.mask(logits_V)
    think = tokenizer.convert_tokens_to_ids("<think>")
    assert np.flatnonzero(np.isfinite(logits_V)).tolist() == [think]
    text, complete = random_answer(grammar, 3)
    assert complete and re.fullmatch(r"<think>[a-z]{3}</(true|false)", text)


@settings(deadline=None, max_examples=40)
@given(st.lists(st.text(min_size=1, max_size=8), min_size=1, max_size=4), st.integers(0, 99))
def test_an_answer_is_one_of_the_choices(choices, seed):
    choices = [choice.encode(errors="ignore").decode() or "x" for choice in choices]
    text, complete = random_answer(grammar_from_choices(choices), seed)
    assert text in choices
    assert complete or len(choices) > 1


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: grammar_from_json_schema({"type": "objekt"}), "the schema.*Invalid type: objekt"),
        (lambda: grammar_from_json_schema({"not": {}}), r"Unimplemented keys: \[\"not\"\]"),
        (lambda: grammar_from_json_schema({"$ref": "#/x"}), "Pointer '/x' does not exist"),
        (lambda: grammar_from_json_schema({"pattern": "(a", "type": "string"}), "unclosed group"),
        (lambda: grammar_from_json_schema(False), "the schema is False; expected an object"),
        (
            lambda: grammar_from_json_schema({"type": "number", "minimum": 3, "maximum": 1}),
            "Unsatisfiable schema",
        ),
        (lambda: grammar_from_json_schema([]), r"the schema is \[\]; expected an object"),
        (lambda: grammar_from_regex("(yes|no"), "the regular expression.*unclosed group"),
        (lambda: grammar_from_lark("start: foo"), 'the grammar.*unknown name: "foo"'),
        (lambda: grammar_from_choices([]), r"the choices are \[\]"),
        (lambda: grammar_from_choices(["a", ""]), "none empty"),
        (
            lambda: grammar_from_json_schema({"type": 5}, "`guided_json`"),
            "`guided_json` is invalid",
        ),
    ],
)
def test_an_invalid_grammar_is_an_error_that_names_the_mistake(make, message):
    with pytest.raises(UsageError, match=message) as caught:
        make()
    assert "\n" not in caught.value.what


def test_a_schema_nested_without_end_is_an_error():
    schema = {}
    for _ in range(3000):
        schema = {"type": "array", "items": schema}
    with pytest.raises(UsageError, match="the schema is invalid"):
        grammar_from_json_schema(schema)


def test_special_tokens_that_the_model_lacks_are_an_error():
    grammar = grammar_from_lark('start: <answer> "a"')
    with pytest.raises(UsageError, match='unknown special token: "<answer>"'):
        grammar_vocabulary("byte level").matcher(grammar)


def test_a_token_against_the_grammar_is_an_error():
    matcher = grammar_vocabulary("byte level").matcher(grammar_from_regex("yes|no"))
    with pytest.raises(UsageError, match="the token 10 in the grammar is invalid"):
        matcher.commit(10)


def test_json_has_no_whitespace_without_end():
    tokenizer = tokenizer_of("byte level")
    matcher = grammar_vocabulary("byte level").matcher(grammar_from_json_schema(SCHEMA))
    (brace,) = tokenizer("{")["input_ids"]
    (line_break,) = tokenizer("\n")["input_ids"]
    matcher.commit(brace)
    for _ in range(64):
        matcher.commit(line_break)
    logits_V = np.zeros(len(tokenizer), np.float32)
    matcher.mask(logits_V)
    assert np.isneginf(logits_V[line_break])


def test_a_tokenizer_without_a_library_is_an_error():
    with pytest.raises(UsageError, match="cannot follow grammars: Only fast tokenizers"):
        GrammarVocabulary({"a": 0}, size=4, end_tokens=[0])


def test_the_missing_library_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(MissingExtraError, match=r"llguidance.*\n.*autoglm-compress\[serve\]"):
        grammar_from_regex("a")
