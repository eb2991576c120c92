"""Chat templates: the tokenizer of a checkpoint that has them, and conversations as its text."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

from compressor.artifacts.errors_from_os import reading
from compressor.errors import DataError

_CONFIG = "tokenizer_config.json"
_TEMPLATE = "chat_template.jinja"
_MORE_TEMPLATES = "additional_chat_templates"
_DEFAULT = "default"
_REMEDY = "copy the checkpoint's chat_template.jinja or tokenizer_config.json beside its tokenizer"
_DATE = date(2024, 7, 26)
"""The date that published templates write where the machine's is not at hand."""
_DATE_FORMAT = re.compile(r"""strftime_now\(\s*(["'])(.*?)\1\s*\)""")


def load_tokenizer(folder: Path) -> Any:
    """Open the tokenizer of a checkpoint with transformers.

    Raises:
        DataError: the folder has no tokenizer.json, or transformers cannot open it.
    """
    if not (folder / "tokenizer.json").is_file():
        raise DataError(
            f"there is no tokenizer.json in {folder}",
            remedy="copy the checkpoint's tokenizer beside its weights",
        )
    from transformers import AutoTokenizer

    try:
        loader: Any = AutoTokenizer
        return loader.from_pretrained(str(folder), local_files_only=True)
    except Exception as error:  # transformers raises classes of several libraries
        raise DataError(f"{folder} holds no tokenizer that transformers opens: {error}") from error


def render_chat(
    tokenizer: Any,
    messages: Sequence[Mapping[str, Any]],
    *,
    add_generation_prompt: bool = False,
    template: str | None = None,
) -> str:
    """Return a conversation as the text that the model reads, special tokens included.

    Args:
        tokenizer: a tokenizer of transformers with a chat template.
        messages: ``{"role", "content"}``, each content a text.
        add_generation_prompt: append the start of the assistant's answer.
        template: use this template instead of the tokenizer's.

    Raises:
        Exception: of the template, which may refuse an order of roles.
    """
    text: str = tokenizer.apply_chat_template(
        [dict(message) for message in messages],
        chat_template=template,
        tokenize=False,
        add_generation_prompt=add_generation_prompt,
    )
    return text


def with_fixed_date(template: str) -> str:
    """Return a template that writes one date every day, so that equal data give equal tokens."""
    formats = {match[2] for match in _DATE_FORMAT.finditer(template)}
    if not formats:
        return template
    cases = "".join(
        f"{{% if format == {json.dumps(text)} %}}{_DATE.strftime(text)}{{% endif %}}"
        for text in sorted(formats)
    )
    return f"{{% macro strftime_now(format) %}}{cases}{{% endmacro %}}{{{{ '' }}}}{template}"


def chat_template_problems(folder: Path) -> list[str]:
    """Return a message if a folder's files hold no chat template that is used by default."""
    names = _template_names(folder)
    if _DEFAULT in names:
        return []
    if names:
        found = ", ".join(sorted(names))
        return [f"{folder} has the chat templates {found}, and none named {_DEFAULT}"]
    return [f"{folder} has no chat template; {_REMEDY}"]


def chat_template_files(folder: Path) -> list[Path]:
    """Return the files of a tokenizer's folder that can change the text of a conversation."""
    named = (folder / name for name in (_CONFIG, _TEMPLATE, "special_tokens_map.json"))
    more = sorted((folder / _MORE_TEMPLATES).glob("*.jinja"))
    return [*(file for file in named if file.is_file()), *more]


def _template_names(folder: Path) -> set[str]:
    """Return the names of a folder's chat templates."""
    names = {file.stem for file in (folder / _MORE_TEMPLATES).glob("*.jinja")}
    if (folder / _TEMPLATE).is_file():
        names.add(_DEFAULT)
    config = folder / _CONFIG
    if not config.is_file():
        return names
    try:
        with reading(config):
            template = json.loads(config.read_bytes()).get("chat_template")
    except (ValueError, AttributeError) as error:
        raise DataError(f"{config} is not a JSON object: {error}") from error
    if isinstance(template, str) and template:
        names.add(_DEFAULT)
    elif isinstance(template, list):
        names |= {item["name"] for item in template if isinstance(item, dict) and "name" in item}
    elif isinstance(template, dict):
        names |= set(template)
    return names
