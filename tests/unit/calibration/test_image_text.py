"""Data source image-text: tokens, patches and labels of conversations, and their problems."""

import base64
import json

import numpy as np
import pytest
import torch
from PIL import Image

from calibration.sources.image_text.source import ImageText, ImageTextConfig
from compressor.data.contract import SourceContext
from compressor.errors import DataError
from compressor.runtimes.session import match_inputs
from tests.support.processors import (
    TEMPLATE,
    message,
    write_conversations,
    write_picture,
    write_processor,
)
from tests.support.record_files import write_json
from tests.support.tiny_models import CHECKPOINT

TINY = CHECKPOINT.presets["tiny-glm4v"]
WITH_IMAGE = [message("user", "w10 w11", "a.png"), message("assistant", "w12 w13")]
TEXT_ONLY = [
    message("user", "w20"),
    message("assistant", "w21"),
    message("user", "w22 w23"),
    message("assistant", "w24"),
]
WITH_WIDE_IMAGE = [message("user", "w30", "b.png"), message("assistant", "w31")]


@pytest.fixture
def base(tmp_path):
    write_processor(tmp_path)
    write_picture(tmp_path / "a.png", 56, 56)
    write_picture(tmp_path / "b.png", 84, 28)
    write_conversations(tmp_path / "talks.jsonl", WITH_IMAGE, TEXT_ONLY, WITH_WIDE_IMAGE)
    return tmp_path


def config_of(**fields):
    defaults = {"source": "image-text", "path": "talks.jsonl", "processor": "."}
    return ImageTextConfig(**(defaults | fields))


def load(base, **fields):
    assert ImageText().problems(config_of(**fields), SourceContext(base)) == []
    return ImageText().load(config_of(**fields), SourceContext(base))


def test_a_sample_has_tokens_patches_and_the_answer_as_label(base):
    batch = load(base).batch(np.arange(1))
    image = [502, 500, 500, 500, 500, 503]  # 4 × 4 patches, merged two by two.
    ids = [1, *image, 10, 11, 3, 2, 12, 13, 3]
    assert batch["input_ids"].tolist() == [ids]
    assert batch["mm_token_type_ids"].tolist() == [[int(token == 500) for token in ids]]
    assert batch["label"].tolist() == [[-100] * 10 + [12, 13, 3, -100]]
    assert batch["image_grid_thw"].tolist() == [[[1, 4, 4]]]
    assert batch["pixel_values"].shape == (1, 16, 3 * 2 * 14 * 14)


def test_samples_of_different_sizes_are_padded(base):
    samples = load(base)
    batch = samples.batch(np.arange(3))
    assert batch["input_ids"].shape == batch["label"].shape == (3, 14)
    assert batch["attention_mask"].sum(axis=1).tolist() == [14, 13, 11]
    assert batch["image_grid_thw"].tolist() == [[[1, 4, 4]], [[-1, -1, -1]], [[1, 2, 6]]]
    assert batch["pixel_values"].shape[1] == 16
    alone = samples.batch(np.array([2]))
    assert np.array_equal(alone["pixel_values"][0], batch["pixel_values"][2, :12])
    assert np.isnan(batch["pixel_values"][2, 12:]).all()
    assert np.isnan(batch["pixel_values"][1]).all()


@pytest.mark.parametrize("samples", [[0], [1], [0, 1, 2], [2, 0]])
def test_logits_of_a_batch_equal_those_of_its_samples(base, samples):
    torch.manual_seed(0)
    module = CHECKPOINT.build(TINY).eval()
    dataset = load(base)

    def logits(indices):
        batch = dataset.batch(np.array(indices))
        inputs = {name: batch[name] for name in dataset.input_names}
        feeds = match_inputs(inputs, CHECKPOINT.signature(TINY).inputs)
        with torch.inference_mode():
            return module(**{name: torch.from_numpy(feed) for name, feed in feeds.items()})[
                "logits"
            ]

    together = logits(samples)
    for row, sample in enumerate(samples):
        alone = logits([sample])[0]
        torch.testing.assert_close(together[row, : len(alone)], alone, atol=1e-5, rtol=1e-5)


def test_text_is_truncated_and_images_are_not(base):
    batch = load(base, sequence_length=9).batch(np.arange(1))
    assert batch["input_ids"].shape == (1, 9)
    with pytest.raises(DataError, match=r"talks.jsonl:1: its images end after token 5"):
        load(base, sequence_length=5).batch(np.arange(1))


def test_all_problems_are_reported_before_anything_is_encoded(base):
    write_conversations(base / "talks.jsonl", WITH_IMAGE, [message("user", "w1", "c.png")])
    (base / "preprocessor_config.json").unlink()
    with (base / "talks.jsonl").open("a") as file:
        file.write('{"messages": [{"role": "user"}]}\n{"messages": []}\nnot JSON\n')
    problems = ImageText().problems(config_of(seed=1), SourceContext(base))
    parts = [
        "`seed` has no effect",
        "no preprocessor_config.json",
        ":2: messages[0]: there is no image",
        ":3: messages[0]: has no 'content'",
        ":4: no messages",
        ":5: no JSON record",
    ]
    for problem, part in zip(problems, parts, strict=True):
        assert part in problem
    with pytest.raises(DataError, match=r"c\.png"):
        ImageText().load(config_of(), SourceContext(base))


def test_an_unreadable_picture_is_named_before_anything_is_encoded(base):
    (base / "a.png").write_bytes(b"not a picture")
    (problem,) = ImageText().problems(config_of(), SourceContext(base))
    assert "talks.jsonl:1: " in problem
    assert "a.png is no picture" in problem
    with pytest.raises(DataError, match=r"talks.jsonl:1: .*a\.png is no picture"):
        ImageText().load(config_of(), SourceContext(base))


def test_a_processor_without_a_chat_template_is_refused(base):
    (base / "chat_template.jinja").unlink()
    tree = json.loads((base / "tokenizer_config.json").read_text())
    tree.pop("chat_template", None)
    (base / "tokenizer_config.json").write_text(json.dumps(tree))
    (problem,) = ImageText().problems(config_of(), SourceContext(base))
    assert "no chat template" in problem
    with pytest.raises(DataError, match="no chat template"):
        ImageText().load(config_of(), SourceContext(base))


def test_the_digest_covers_pictures_and_processor(base):
    def digest(**fields):
        return ImageText().digest(config_of(**fields), SourceContext(base))

    before = digest()
    assert digest() == before != digest(sequence_length=100)
    write_picture(base / "b.png", 28, 84)
    after = digest()
    assert after != before
    (base / "chat_template.jinja").write_text("{{ messages }}")
    assert digest() != after


def test_forms_of_other_tools_give_the_same_arrays(base):
    encoded = base64.b64encode((base / "a.png").read_bytes()).decode()
    url = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{encoded}"}}
    text = {"type": "text", "text": "w10 w11"}
    answer = {"role": "assistant", "content": "w12 w13"}
    turns = [{"from": "human", "value": "<image>\nw10 w11"}, {"from": "gpt", "value": "w12 w13"}]
    records = [
        {"messages": WITH_IMAGE},
        {"messages": [{"role": "user", "content": [url, text]}, answer]},
        {"conversations": turns, "image": "a.png", "id": "1"},
        {"messages": [{"role": "user", "content": "<image>w10 w11"}, answer], "images": ["a.png"]},
    ]
    write_json(base / "talks.jsonl", records)
    samples = load(base)
    expected = samples.batch(np.array([0]))
    for index in range(1, len(records)):
        batch = samples.batch(np.array([index]))
        assert all(np.array_equal(batch[name], expected[name]) for name in expected)


def test_a_broken_picture_inside_of_a_record_is_named(base):
    url = "data:image/png;base64," + base64.b64encode(b"no picture").decode()
    part = {"type": "image_url", "image_url": {"url": url}}
    write_json(base / "talks.jsonl", [{"messages": [{"role": "user", "content": [part]}]}])
    (problem,) = ImageText().problems(config_of(), SourceContext(base))
    assert "talks.jsonl:1: " in problem
    assert "is no picture" in problem


def test_transparent_pixels_show_the_background(base):
    Image.new("RGBA", (56, 56), (255, 0, 0, 0)).save(base / "a.png")
    write_conversations(base / "talks.jsonl", WITH_IMAGE)
    white, black = (
        load(base, **fields).batch(np.arange(1))["pixel_values"]
        for fields in ({}, {"background": "black"})
    )
    assert white.min() > black.max()


def test_the_digest_covers_fields_that_are_set(base):
    digests = {
        ImageText().digest(config_of(**fields), SourceContext(base))
        for fields in ({}, {"ignore": ("caption",)}, {"background": "black"})
    }
    assert len(digests) == 3
    default = config_of(ignore=(), background="white")
    assert ImageText().digest(default, SourceContext(base)) in digests


def test_unknown_keys_are_refused_unless_they_are_ignored(base):
    write_json(base / "talks.jsonl", [{"messages": TEXT_ONLY, "caption": "x"}])
    (problem,) = ImageText().problems(config_of(), SourceContext(base))
    assert "talks.jsonl:1: unknown key 'caption': set `ignore: [caption]`" in problem
    assert len(load(base, ignore=("caption",))) == 1


def test_the_facts_are_those_of_the_loaded_set(base):
    samples, facts = load(base), ImageText().facts(config_of(), SourceContext(base))
    assert tuple(input_.name for input_ in facts.inputs) == samples.input_names
    assert facts.has_labels
    batch = samples.batch(np.arange(3))
    for input_ in facts.inputs:
        array = batch[input_.name]
        assert str(array.dtype) == input_.dtype
        sizes = zip(array.shape[1:], input_.shape, strict=True)
        assert all(known in (None, size) for size, known in sizes)
    assert facts.inputs[0].largest == 511
    assert facts.inputs[3].shape == (None, 3 * 2 * 14 * 14)


def test_a_slow_tokenizer_is_named_with_the_command_that_converts_it(base):
    (base / "tokenizer.json").rename(base / "tokenizer.model")
    (problem,) = ImageText().problems(config_of(), SourceContext(base))
    assert "has tokenizer.model, but no tokenizer.json" in problem


def test_a_truncated_picture_is_named_before_anything_is_encoded(base):
    write_conversations(base / "talks.jsonl", *[WITH_IMAGE] * 3, WITH_WIDE_IMAGE, WITH_IMAGE)
    content = (base / "b.png").read_bytes()
    (base / "b.png").write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match=r"talks\.jsonl:4: .*b\.png cannot be decoded"):
        load(base)


def test_the_answer_is_found_where_a_prompt_is_written_differently(base):
    template = TEMPLATE.replace("<assistant> {% endif", "<assistant> w99 {% endif")
    (base / "chat_template.jinja").write_text(template)
    batch = load(base).batch(np.arange(1))
    assert batch["input_ids"][0].tolist()[-4:] == [2, 12, 13, 3]
    assert batch["label"].tolist() == [[-100] * 10 + [12, 13, 3, -100]]
    early = TEMPLATE.replace(
        "<{{ message.role }}> ", "<{{ message.role }}> {{ 'w8 ' if loop.last }}"
    )
    (base / "chat_template.jinja").write_text(early)
    batch = load(base).batch(np.array([1]))
    assert batch["input_ids"].tolist() == [[1, 20, 3, 2, 21, 3, 1, 22, 23, 3, 2, 8, 24, 3]]
    assert batch["label"].tolist() == [[-100] * 11 + [24, 3, -100]]


def test_a_template_that_refuses_or_loses_images_is_named_before_anything_is_encoded(base):
    refusing = "{% if messages[2] %}{{ raise_exception('two turns') }}{% endif %}" + TEMPLATE
    (base / "chat_template.jinja").write_text(refusing)
    problems = ImageText().problems(config_of(), SourceContext(base))
    assert problems == [f"{base}/talks.jsonl:2: the chat template fails: two turns"]
    (base / "chat_template.jinja").write_text(TEMPLATE.replace("<|image|>", ""))
    with pytest.raises(DataError, match=r"talks\.jsonl:1: .* writes 0 image tokens for 1 images"):
        load(base)
