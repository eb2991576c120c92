"""Tests of an open chat model: prompts, images anywhere in a conversation, and its bounds."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from calibration.sources.image_text.source import ImageText, ImageTextConfig
from compressor.data.contract import SourceContext
from compressor.errors import DataError, UsageError
from compressor.generation.generate import generate, model_at
from compressor.generation.grammar import grammar_from_choices
from compressor.generation.prompt import Prompt
from compressor.generation.requests import FinishReason, SamplingOptions
from tests.support.chat_models import answer_to, begin, opened
from tests.support.decoders import export_decoder, save_decoder
from tests.support.processors import message, write_conversations, write_picture, write_processor
from tests.support.tokenizer_kinds import byte_level

FORMATS = ("onnx", "portable", "torch")


@pytest.fixture(scope="module")
def bed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("chat")
    parent = save_decoder(folder / "torch", "tiny-glm4v")
    write_processor(folder / "torch")
    for number, size in enumerate([(56, 56), (84, 28)]):
        write_picture(folder / f"{number}.png", *size)
    turns = [message("user", "w20 w7", "0.png"), message("assistant", "w9 w5")]
    write_conversations(folder / "conversations.jsonl", turns, turns)
    config = ImageTextConfig(source="image-text", path="conversations.jsonl", processor="torch")
    dataset = ImageText().load(config, SourceContext(folder))
    for name, target in (("onnx", "onnxruntime"), ("portable", "portable")):
        fields = {"parity": {"data": "text", "num_samples": 2}, "decoder": {"target": target}}
        export_decoder(parent, folder / name, fields, dataset)
        write_processor(folder / name)
    return folder


def picture(folder, number=0):
    return {"type": "image", "image": Image.open(folder / f"{number}.png").convert("RGB")}


def text(words):
    return {"type": "text", "text": words}


def user(*parts):
    return {"role": "user", "content": list(parts)}


@pytest.mark.parametrize("name", FORMATS)
def test_an_answer_about_an_image_is_that_of_generate(name, bed):
    expected = generate(
        model_at(bed / name),
        Prompt("w21 w22", images=(bed / "0.png",)),
        SamplingOptions(10),
        threads=1,
        on_text=lambda _: None,
    )
    with opened(bed / name) as model:
        prompt = model.encode_chat([user(picture(bed), text("w21 w22"))])
        answer = answer_to(model, prompt, 10, ignore_end=False)
    assert answer.text == expected.text
    assert answer.finish.usage.prompt_tokens == expected.prompt_tokens


@pytest.mark.parametrize("name", FORMATS)
def test_images_may_follow_texts_and_other_images(name, bed):
    first = [user(text("w30 w31")), {"role": "assistant", "content": "w32"}]
    conversation = [*first, user(picture(bed), text("w5"), picture(bed, 1))]
    with opened(bed / name) as model:
        answer_to(model, model.encode_chat(first))
        prompt = model.encode_chat(conversation)
        behind_prefix = answer_to(model, prompt)
        known = behind_prefix.finish.usage.cached_tokens
    with opened(bed / name) as model:
        anew = answer_to(
            model, model.encode_chat([*first, user(picture(bed), text("w5"), picture(bed, 1))])
        )
    assert behind_prefix.text == anew.text
    assert anew.finish.usage.cached_tokens == 0
    assert (known > 5) == (name == "onnx")


def test_a_prefix_is_shared_only_with_the_same_image(bed):
    with opened(bed / "onnx") as model:

        def cached(number):
            prompt = model.encode_chat([user(text("w8 w9"), picture(bed, number), text("w21"))])
            return answer_to(model, prompt).finish.usage.cached_tokens, prompt

        (_, prompt), (same, _), (other, _) = cached(0), cached(0), cached(1)
        first_image = int(np.flatnonzero(prompt.prefix_keys_T < 0)[0])
        assert same == len(prompt.token_ids_T) - 1
        assert other <= first_image


def test_images_of_answers_that_run_at_once_do_not_mix(bed):
    conversations = [
        [user(picture(bed, 0), text("w21"))],
        [user(text("w40 w41"))],
        [user(picture(bed, 1), text("w22"))],
    ]
    with opened(bed / "onnx") as model:
        prompts = [model.encode_chat(conversation) for conversation in conversations]
        alone = [answer_to(model, prompt, 20).text for prompt in prompts]
        together = [begin(model, prompt, 20) for prompt in prompts]
        assert [answer.wait().text for answer in together] == alone


def test_the_vision_tower_embeds_an_image_once(bed):
    with opened(bed / "onnx") as model:
        for words in ("w21", "w22", "w23"):
            model.encode_chat([user(picture(bed), text(words))])
        assert (model.image_cache.misses, model.image_cache.hits) == (1, 2)


def test_a_picture_that_is_sent_again_is_not_processed_again(bed, monkeypatch):
    with opened(bed / "onnx") as model:
        images = model._prompts.processor.processor.image_processor
        sizes, original = [], type(images._processor).__call__

        def count(self, pictures, **options):
            sizes.append(len(pictures))
            return original(self, pictures, **options)

        monkeypatch.setattr(type(images._processor), "__call__", count)
        first, again, other = (
            model.encode_chat([user(text("w20"), picture(bed, number), text(words))])
            for number, words in ((0, "w21"), (0, "w21"), (1, "w21"))
        )
    assert len(sizes) == 2
    np.testing.assert_array_equal(first.images.embeddings_NW, again.images.embeddings_NW)
    np.testing.assert_array_equal(first.prefix_keys_T, again.prefix_keys_T)
    assert not np.array_equal(first.prefix_keys_T, other.prefix_keys_T)


def test_embeddings_are_dropped_when_they_exceed_their_bytes(bed):
    with opened(bed / "onnx", feature_bytes=1) as model:
        for _ in range(2):
            model.encode_chat([user(picture(bed), text("w21"))])
        assert model.image_cache.misses == 2


def test_a_template_receives_its_options(bed, tmp_path):
    folder = shutil.copytree(bed / "torch", tmp_path / "model")
    template = "{% for m in messages %}{{ m.content }} {% endfor %}{% if thinking %}w77{% endif %}"
    (folder / "chat_template.jinja").write_text(template)
    with opened(folder) as model:
        messages = [{"role": "user", "content": [text("w5"), text("w6")]}]
        plain = model.encode_chat(messages).token_ids_T.tolist()
        assert plain == [5, 6]
        assert model.encode_chat(messages, {"thinking": True}).token_ids_T.tolist() == [5, 6, 77]


def test_text_parts_are_joined_by_a_line_break_or_stay_a_list_as_the_template_takes_them(
    bed, tmp_path
):
    folder = shutil.copytree(bed / "torch", tmp_path / "model")
    messages = [
        {"role": "system", "content": "w8"},
        user(text("w5"), text("w6")),
        {"role": "assistant", "content": "w7"},
    ]
    joined = "{% for m in messages %}{{ m.content.replace('\\n', ' w99 ') }} {% endfor %}"
    listed = "{% for m in messages %}{% for p in m.content %}{{ p.text }} {% endfor %}{% endfor %}"
    for template, expected in ((joined, [8, 5, 99, 6, 7]), (listed, [8, 5, 6, 7])):
        (folder / "chat_template.jinja").write_text(template)
        with opened(folder) as model:
            assert model.encode_chat(messages).token_ids_T.tolist() == expected


def test_a_template_that_refuses_a_conversation_is_a_usage_error(bed, tmp_path):
    folder = shutil.copytree(bed / "torch", tmp_path / "model")
    refusal = "{{ raise_exception('roles must alternate') }}"
    (folder / "chat_template.jinja").write_text(
        "{% if messages|length > 1 %}" + refusal + "{% endif %}w5"
    )
    with opened(folder) as model, pytest.raises(UsageError, match="roles must alternate"):
        model.encode_chat([{"role": "user", "content": "w5"}] * 2)


def test_a_model_without_template_takes_texts_alone(bed, tmp_path):
    folder = shutil.copytree(bed / "torch", tmp_path / "model")
    save_decoder(tmp_path / "text", "tiny-llama")
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(folder / file, tmp_path / "text" / file)
    settings = json.loads((tmp_path / "text" / "tokenizer_config.json").read_text())
    settings.pop("chat_template", None)
    (tmp_path / "text" / "tokenizer_config.json").write_text(json.dumps(settings))
    with opened(tmp_path / "text") as model:
        assert not model.has_chat_template
        assert answer_to(model, model.encode_text("w5 w6")).text
        with pytest.raises(UsageError, match="no chat template"):
            model.encode_chat([{"role": "user", "content": "w5"}])
        with pytest.raises(UsageError, match="empty"):
            model.encode_text("")


def test_bounds_that_do_not_fit_are_refused(bed):
    with (
        pytest.raises(UsageError, match=r"100000 tokens is impossible"),
        opened(bed / "onnx", context=100_000),
    ):
        pass
    with (
        pytest.raises(
            UsageError,
            match=r"keys and values of 256 tokens take \d+\.\d MiB, and they may take 0\.0 MiB",
        ),
        opened(bed / "onnx", cache_bytes=1000),
    ):
        pass


def test_tokens_that_the_model_lacks_are_refused(bed, tmp_path):
    folder = shutil.copytree(bed / "torch", tmp_path / "model")
    tree = json.loads((folder / "tokenizer.json").read_text())
    tree["model"]["vocab"]["zebra"] = 4000
    (folder / "tokenizer.json").write_text(json.dumps(tree))
    with opened(folder) as model, pytest.raises(DataError, match=r"no row for: 'zebra' \(4000\)"):
        model.encode_text("zebra")


def test_an_answer_follows_its_grammar_beside_one_without(tmp_path):
    save_decoder(tmp_path, "tiny-llama")
    byte_level().save_pretrained(tmp_path)
    grammar = grammar_from_choices(["yes", "not at all"])
    with opened(tmp_path) as model:
        prompt = model.encode_text("a question")
        free = answer_to(model, prompt, 20).text
        answers = [
            begin(model, prompt, 20, grammar=given, ignore_end=False) for given in (grammar, None)
        ]
        bound, beside = (answer.wait() for answer in answers)
    assert bound.text in {"yes", "not at all"}
    assert bound.finish.reason is FinishReason.STOP
    assert free.startswith(beside.text)
