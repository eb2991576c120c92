"""Text of an answer, token by token, with tokenizers of every kind."""

import functools
import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compressor.errors import DataError
from compressor.generation.answer_text import AnswerText
from tests.support.tokenizer_kinds import KINDS, TEXT

tokenizer_of = functools.cache(lambda kind: KINDS[kind]())
UNFINISHED = "\ufffd"


def pieces_of(tokenizer, tokens, **options):
    """Return the piece of text after each token, the last one with what was held back."""
    answer = AnswerText(tokenizer, **options)
    pieces = [answer.add(token) for token in tokens]
    pieces.append(answer.finish())
    assert "".join(pieces) == answer.text
    return pieces


def tokens_of(tokenizer):
    return st.lists(st.integers(0, len(tokenizer) - 1), max_size=25)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("keep", [False, True])
def test_the_pieces_are_the_decoded_text(kind, keep):
    tokenizer = tokenizer_of(kind)

    @settings(deadline=None, max_examples=60)
    @given(tokens_of(tokenizer))
    def check(tokens):
        text = "".join(pieces_of(tokenizer, tokens, keep_special_tokens=keep))
        expected = tokenizer.decode(tokens, skip_special_tokens=not keep)
        if kind == "byte fallback" and UNFINISHED in expected:
            # The library replaces valid characters in front of an invalid byte as well.
            assert text.replace(UNFINISHED, "").startswith(expected.split(UNFINISHED)[0])
        else:
            assert text == expected.rstrip(UNFINISHED)

    check()


@pytest.mark.parametrize("kind", KINDS)
def test_real_text_arrives_with_its_tokens(kind):
    tokenizer = tokenizer_of(kind)
    for text in TEXT[:6]:
        tokens = tokenizer(text, add_special_tokens=False)["input_ids"]
        answer = AnswerText(tokenizer)
        for count, token in enumerate(tokens, start=1):
            answer.add(token)
            assert UNFINISHED not in answer.text
            known = tokenizer.decode(tokens[:count]).split(UNFINISHED)[0]
            assert len(known) - len(answer.text) <= 30  # at most a word late
        answer.finish()
        assert answer.text == tokenizer.decode(tokens)


def test_half_a_character_is_never_sent_and_the_stream_goes_on_behind_it():
    tokenizer = tokenizer_of("byte fallback")
    ids = tokenizer.convert_tokens_to_ids
    character = [ids(f"<0x{byte:02X}>") for byte in "中".encode()]
    assert pieces_of(tokenizer, character) == ["", "", "中", ""]
    letter = ids("a")
    broken = [*character, character[0], letter, *character]
    assert pieces_of(tokenizer, broken) == ["", "", "中", "", UNFINISHED + "a", "", "", "中", ""]
    assert pieces_of(tokenizer, [letter, *character[:2]]) == ["a", "", "", ""]


def test_a_tokenizer_that_fails_is_an_error():
    with pytest.raises(DataError, match="cannot decode the answer"):
        pieces_of(tokenizer_of("byte level"), [2**40])


def text_of(stops, text, tokenizer):
    """Return the pieces and the stop text of an answer with this text."""
    answer = AnswerText(tokenizer, stop=stops)
    pieces = []
    for token in tokenizer(text, add_special_tokens=False)["input_ids"]:
        pieces.append(answer.add(token))
        if answer.stopped:
            break
    pieces.append(answer.finish())
    return pieces, answer.stopped


def test_a_stop_text_and_its_begin_are_never_sent():
    tokenizer = tokenizer_of("byte level")
    action = 'do(action="Tap", element=[512, 88])'
    pieces, stopped = text_of(["</answer>", "\n\n"], action + "</answer> and more", tokenizer)
    assert ("".join(pieces), stopped) == (action, "</answer>")
    pieces, stopped = text_of(["</answer>"], action + "</ans", tokenizer)
    assert ("".join(pieces), stopped) == (action + "</ans", None)
    assert pieces[-1] == "</ans"
    assert text_of(["", "x"], "abc", tokenizer)[1] is None


@settings(deadline=None, max_examples=300)
@given(
    st.text("ab中\n", max_size=30),
    st.lists(st.text("ab中\n", min_size=1, max_size=6), min_size=1, max_size=3),
)
def test_the_first_complete_stop_text_ends_the_answer(text, stops):
    tokenizer = tokenizer_of("byte level")
    ends = [text.find(stop) + len(stop) for stop in stops if stop in text]
    pieces, stopped = text_of(stops, text, tokenizer)
    if not ends:
        assert ("".join(pieces), stopped) == (text, None)
    else:
        expected = max((s for s in stops if text[: min(ends)].endswith(s)), key=len)
        assert ("".join(pieces), stopped) == (text[: min(ends) - len(expected)], expected)
    tokens = tokenizer(text, add_special_tokens=False)["input_ids"]
    for count in range(len(pieces) - 1 - bool(stopped)):  # whatever may begin a stop text is held
        known = tokenizer.decode(tokens[: count + 1]).rstrip(UNFINISHED)
        open_stop = max(n for s in stops for n in range(len(s)) if known.endswith(s[:n]))
        assert "".join(pieces[: count + 1]) == known[: len(known) - open_stop]


def test_tokens_behind_a_stop_text_are_ignored():
    tokenizer = tokenizer_of("byte level")
    answer = AnswerText(tokenizer, stop=["b"])
    tokens = tokenizer("abab")["input_ids"]
    assert list(itertools.chain(map(answer.add, tokens), [answer.finish()])).count("a") == 1
    assert (answer.text, answer.stopped) == ("a", "b")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("held", [False, True], ids=["sent at once", "held back"])
def test_the_offset_of_a_token_counts_the_text_that_is_held_back(kind, held):
    tokenizer = tokenizer_of(kind)
    tokens = tokenizer(TEXT[1], add_special_tokens=False)["input_ids"]
    whole = tokenizer.decode(tokens, skip_special_tokens=True)
    answer = AnswerText(tokenizer, stop=[f"{whole} and more"] if held else [])
    for count, token in enumerate(tokens):
        decoded = tokenizer.decode(tokens[:count], skip_special_tokens=True)
        late = answer.next_offset - len(decoded.rstrip(UNFINISHED))
        if kind != "byte fallback" or UNFINISHED not in decoded:  # see the first test
            # A space may go again once punctuation follows, where a tokenizer cleans up.
            assert late == 0 or (late == 1 and tokenizer.clean_up_tokenization_spaces)
        answer.add(token)
        assert not (held and answer.text)
