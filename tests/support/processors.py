"""A processor of GLM-4V's class for the preset tiny-glm4v: a vocabulary of words, small images."""

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
SPECIAL = {
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
    "{% for message in messages %}<{{ message.role }}> {% if message.content is string %}{{ message.content }} {% else %}"
    "{% for part in message.content %}{% if part.type == 'image' %}<|begin_of_image|><|image|><|end_of_image|> {% else %}"
    "{{ part.text }} {% endif %}{% endfor %}{% endif %}<end> {% endfor %}{% if add_generation_prompt %}<assistant> {% endif %}"
)


def write_processor(folder: Path) -> None:
    """Tokenizer, chat template, image processor."""
    words = {
        f"w{number}": number for number in range(512) if number not in SPECIAL.values()
    } | SPECIAL
    tokenizer = Tokenizer(WordLevel(words, unk_token="w0"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, chat_template=TEMPLATE, additional_special_tokens=list(SPECIAL)
    )
    fast.save_pretrained(folder)
    Glm4vImageProcessorPil(
        size={"shortest_edge": 28 * 28, "longest_edge": 28 * 28 * 16}
    ).save_pretrained(folder)
    if not (folder / "config.json").exists():
        (folder / "config.json").write_text(json.dumps(TREE))


def write_picture(file: Path, width: int, height: int) -> None:
    """Noise that depends on the size alone."""
    draw = np.random.default_rng(width * 1000 + height).integers(
        0, 256, (height, width, 3), dtype=np.uint8
    )
    Image.fromarray(draw).save(file)


def message(role: str, text: str, *images: str) -> dict:
    """One turn."""
    return {
        "role": role,
        "content": [
            *({"type": "image", "path": one} for one in images),
            {"type": "text", "text": text},
        ],
    }


def write_conversations(file: Path, *conversations: list) -> None:
    """One a line."""
    file.write_text("".join(json.dumps({"messages": one}) + "\n" for one in conversations))
