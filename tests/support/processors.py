"""Processor of GLM-4V's class for the preset tiny-glm4v, and conversations for it."""

import json
from pathlib import Path

import numpy as np
from PIL import Image
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import PreTrainedTokenizerFast
from transformers.models.glm4v.image_processing_pil_glm4v import Glm4vImageProcessorPil

from compressor.models.families.transformers.presets import PRESETS

TREE = PRESETS["tiny-glm4v"].tree
SPECIAL_TOKENS = {
    "<|image|>": TREE["image_token_id"],
    "<|video|>": TREE["video_token_id"],
    "<|begin_of_image|>": TREE["image_start_token_id"],
    "<|end_of_image|>": TREE["image_end_token_id"],
    "<|begin_of_video|>": TREE["video_start_token_id"],
    "<|end_of_video|>": TREE["video_end_token_id"],
    "<user>": 1,
    "<assistant>": 2,
    "<end>": 3,
}
TEMPLATE = (
    "{% for message in messages %}<{{ message.role }}> "
    "{% if message.content is string %}{{ message.content }} {% else %}"
    "{% for part in message.content %}"
    "{% if part.type == 'image' %}<|begin_of_image|><|image|><|end_of_image|> {% else %}"
    "{{ part.text }} {% endif %}{% endfor %}{% endif %}<end> {% endfor %}"
    "{% if add_generation_prompt %}<assistant> {% endif %}"
)


def write_processor(folder: Path) -> None:
    """Write a tokenizer whose word ``w7`` is token 7, a chat template and an image processor."""
    words = {f"w{number}": number for number in range(512)}
    vocabulary = {
        word: number for word, number in words.items() if number not in SPECIAL_TOKENS.values()
    } | SPECIAL_TOKENS
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="w0"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        chat_template=TEMPLATE,
        additional_special_tokens=list(SPECIAL_TOKENS),
    ).save_pretrained(folder)
    write_image_processor(folder)
    if not (folder / "config.json").exists():
        (folder / "config.json").write_text(json.dumps(TREE))


def write_image_processor(folder: Path) -> None:
    """Write an image processor for small pictures."""
    Glm4vImageProcessorPil(
        size={"shortest_edge": 28 * 28, "longest_edge": 28 * 28 * 16}
    ).save_pretrained(folder)


def write_picture(file: Path, width: int, height: int) -> None:
    """Write a picture of noise that depends on its size alone."""
    generator = np.random.default_rng(width * 1000 + height)
    pixels = generator.integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file)


def message(role: str, text: str, *images: str) -> dict:
    """Return a message of images followed by a text."""
    parts = [{"type": "image", "path": image} for image in images]
    return {"role": role, "content": [*parts, {"type": "text", "text": text}]}


def write_conversations(file: Path, *conversations: list) -> None:
    """Write a JSONL file with one conversation, a list of messages, per line."""
    lines = [json.dumps({"messages": messages}) + "\n" for messages in conversations]
    file.write_text("".join(lines))
