"""Conversations: turns that keep their keys and values, cancelled answers, and failures."""

import pytest

from compressor.errors import UsageError
from compressor.generation.conversation import Conversation, open_chat_model
from compressor.generation.requests import FinishReason, SamplingOptions
from compressor.runtimes.formats import recognize
from tests.support.chat_models import opened
from tests.support.decoders import save_decoder
from tests.support.processors import write_processor


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("conversation")
    save_decoder(folder, "tiny-llama")
    write_processor(folder)
    with opened(folder, rows=1) as model:
        yield model


def conversation(model, max_tokens=6):
    return Conversation(model, SamplingOptions(max_tokens, ignore_end=True))


def ask(conversation, message, on_text=lambda _: None):
    return conversation.ask(message, on_text)


def test_a_turn_has_the_turns_before_it_and_reads_them_from_the_cache(model):
    chat = conversation(model)
    first = ask(chat, "w10 w11")
    second = ask(chat, "w12")
    assert second.usage.prompt_tokens == 5 + 6 + 1 + 4  # <user> … <end> <assistant>, and the end
    assert second.usage.cached_tokens == 5 + 5  # the last token was not read yet
    messages = [
        {"role": "user", "content": "w10 w11"},
        {"role": "assistant", "content": first.text},
        {"role": "user", "content": "w12"},
    ]
    whole = model.encode_chat(messages)
    assert len(whole.token_ids_T) == second.usage.prompt_tokens
    assert first.reason is FinishReason.LENGTH and first.tokens_per_second > 0
    chat.clear()
    assert ask(chat, "w10 w11").text == first.text


def test_text_is_passed_on_as_it_comes(model):
    pieces = []
    reply = ask(conversation(model), "w20 w21", pieces.append)
    assert len(pieces) > 1 and "".join(pieces) == reply.text


def test_a_cancelled_answer_stays_in_the_conversation(model):
    chat = conversation(model, max_tokens=200)
    reply = ask(chat, "w30", lambda _: chat.cancel())
    assert reply.reason is FinishReason.CANCELLED
    assert 0 < reply.usage.completion_tokens < 200
    following = ask(chat, "w31", lambda _: chat.cancel())
    assert following.usage.prompt_tokens > 4 + reply.usage.completion_tokens
    following = ask(conversation(model), "w31")
    assert following.reason is FinishReason.LENGTH  # a later answer is not cancelled


def test_a_reader_that_fails_ends_the_answer(model):
    def fail(text):
        raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        ask(conversation(model, max_tokens=200), "w40", fail)
    assert ask(conversation(model), "w41").usage.completion_tokens == 6
    assert model.engine.is_idle


def test_a_message_that_exceeds_the_context_is_forgotten(model):
    chat = conversation(model)
    with pytest.raises(UsageError, match="the context has 256"):
        ask(chat, "w1 " * 300)
    assert ask(chat, "w1").usage.prompt_tokens == 4


def test_models_that_hold_no_conversation_are_errors(tmp_path):
    save_decoder(tmp_path, "tiny-llama")
    write_processor(tmp_path)
    (tmp_path / "chat_template.jinja").unlink()
    with pytest.raises(UsageError, match="has no chat template: it continues texts") as caught:
        open_chat_model(recognize(tmp_path), threads=1)
    assert "--prompt" in caught.value.remedy
