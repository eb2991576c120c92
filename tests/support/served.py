"""Small models with a byte-level tokenizer, and servers of them on a free port."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from transformers import PreTrainedTokenizerFast

from compressor.models.families.transformers.family import Transformers
from compressor.serving.launch import RunningServer, ServeOptions, running_server
from compressor.serving.server import Address
from tests.support.decoders import export_decoder
from tests.support.processors import SPECIAL_TOKENS, write_processor
from tests.support.stand_ins import write_model

_FIRST_BYTE = 4
"""Token of byte 0, behind those of the template's roles."""
LETTERS = {str(_FIRST_BYTE + byte): 50 for byte in range(ord("a"), ord("z") + 1)}
"""Bias with which a model of random weights writes letters."""
TEMPLATE = (
    "{% if tools %}<system>{{ tools | tojson }}<end>{% endif %}"
    "{% for message in messages %}<{{ message.role }}>"
    "{% if message.content is string %}{{ message.content }}{% else %}"
    "{% for part in message.content %}"
    "{% if part.type == 'image' %}<|begin_of_image|><|image|><|end_of_image|>{% else %}"
    "{{ part.text }}{% endif %}{% endfor %}{% endif %}"
    "{% for call in message.tool_calls or [] %}{{ call.function.name }}"
    "{% for name, value in call.function.arguments.items() %}{{ name }}={{ value }}{% endfor %}"
    "{% endfor %}<end>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>"
    "{% if enable_thinking %}<think>{% endif %}{% endif %}"
)


def write_byte_glm4v(folder: Path, context: int = 8192) -> None:
    """Write a GLM-4V checkpoint with random weights whose tokens are bytes."""
    torch.manual_seed(0)
    write_model(
        Transformers(), "tiny-glm4v", folder, text_config={"max_position_embeddings": context}
    )
    write_processor(folder)
    write_byte_tokenizer(folder, SPECIAL_TOKENS)


def write_byte_llama(folder: Path, context: int = 512) -> None:
    """Write a Llama checkpoint with random weights whose tokens are bytes."""
    torch.manual_seed(0)
    write_model(Transformers(), "tiny-llama", folder, max_position_embeddings=context)
    write_byte_tokenizer(folder, {name: SPECIAL_TOKENS[name] for name in list(SPECIAL_TOKENS)[-3:]})


def export_byte_model(folder: Path, out: Path) -> None:
    """Export a checkpoint with a byte-level tokenizer to ONNX."""
    parent = SimpleNamespace(model=folder, manifest=SimpleNamespace(id="ab12", format="torch"))
    export_decoder(parent, out, {"parity": {"data": "text", "num_samples": 2}})


def write_byte_tokenizer(folder: Path, special: dict[str, int]) -> None:
    """Write a tokenizer with a token for each byte, and the chat template."""
    characters = sorted(ByteLevel.alphabet(), key=_byte_of)
    vocabulary = {character: _FIRST_BYTE + byte for byte, character in enumerate(characters)}
    tokenizer = Tokenizer(BPE({**vocabulary, **special}, []))
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = ByteLevelDecoder()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        chat_template=TEMPLATE,
        additional_special_tokens=list(special),
        eos_token="<end>",
    ).save_pretrained(folder)
    (folder / "chat_template.jinja").write_text(TEMPLATE)


def _byte_of(character: str) -> int:
    """Return the byte that a character of GPT-2's alphabet stands for."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    if ord(character) < 256:
        return ord(character)
    return [byte for byte in range(256) if byte not in printable][ord(character) - 256]


@contextmanager
def serving(path: Path, **options: Any) -> Iterator[RunningServer]:
    """Serve a model on a free port of this machine."""
    chosen = {"names": ("tiny",), "rows": 4, **options}
    with running_server(ServeOptions(path, Address("127.0.0.1", 0), **chosen)) as server:
        yield server


def screen_png(seed: int = 0, width: int = 1080, height: int = 2400) -> bytes:
    """Return a picture of coloured boxes, as a phone's screen has them."""
    generator = np.random.default_rng(seed)
    pixels = np.full((height, width, 3), 250, np.uint8)
    for _ in range(30):
        top, left = generator.integers(0, height - 8), generator.integers(0, width - 8)
        bottom, right = top + generator.integers(8, 300), left + generator.integers(8, 300)
        pixels[top:bottom, left:right] = generator.integers(0, 256, 3)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def data_url(content: bytes, kind: str = "image/png") -> str:
    """Return the content as a data: address."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
