"""Chat templates: the tokenizer of a checkpoint that has them, and conversations as its text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from types import MappingProxyType
from typing import Any

from compressor.errors import DataError
from compressor.foreign_files.json_files import check_json_file, read_json_object
from compressor.foreign_files.limits import SOURCE_TEXT, TOKENIZER
from compressor.foreign_files.opening import read_bytes
from compressor.foreign_files.tokenizer_trial import check_encodes
from compressor.models.checkpoint.companions import TOKENIZER_FILES, has_tokenizer
from compressor.models.families.transformers.pretrained import from_pretrained
from compressor.models.families.transformers.template_trial import check_ends

_CONFIG = "tokenizer_config.json"
_TEMPLATE = "chat_template.jinja"
_MORE_TEMPLATES = "additional_chat_templates"
_TOKENIZER = "tokenizer.json"
_DEFAULT = "default"
_REMEDY = "copy the checkpoint's chat_template.jinja or tokenizer_config.json beside its tokenizer"
_DATE = date(2024, 7, 26)
"""The date that published templates write where the machine's is not at hand."""
_DATE_PARTS = ("-d", "-m", *"aAbBdHIjmMpSyY")
"""Parts of a date and time that templates write, as ``strftime`` names them."""


def load_tokenizer(folder: Path) -> Any:
    """Open the tokenizer of a checkpoint with transformers.

    Raises:
        DataError: the folder has no tokenizer, transformers cannot open it, its chat template does
            not end, or it needs too much memory or time for a short text.
    """
    if not has_tokenizer(folder):
        raise DataError(
            f"there is no {' or '.join(TOKENIZER_FILES)} in {folder}",
            remedy="copy the checkpoint's tokenizer beside its weights",
        )
    check_templates(folder)
    _check_encodes(folder)
    from transformers import AutoTokenizer

    loader: Any = AutoTokenizer
    return from_pretrained(loader, folder, "tokenizer")


def render_chat(
    tokenizer: Any,
    messages: Sequence[Mapping[str, Any]],
    *,
    add_generation_prompt: bool = False,
    template: str | None = None,
    template_options: Mapping[str, Any] = MappingProxyType({}),
) -> str:
    """Return a conversation as the text that the model reads, special tokens included.

    Args:
        tokenizer: a tokenizer of transformers with a chat template.
        messages: ``{"role", "content"}``, each content a text.
        add_generation_prompt: append the start of the assistant's answer.
        template: use this template instead of the tokenizer's.
        template_options: variables of the template, such as ``tools``.

    Raises:
        Exception: of the template, which may refuse an order of roles.
    """
    text: str = tokenizer.apply_chat_template(
        [dict(message) for message in messages],
        chat_template=template,
        tokenize=False,
        add_generation_prompt=add_generation_prompt,
        **template_options,
    )
    return text


def with_fixed_date(template: str) -> str:
    """Return a template that writes one date every day, so that equal data give equal tokens."""
    if "strftime_now" not in template:
        return template
    dated = "".join(f"|replace('%{part}', '{_DATE.strftime(f'%{part}')}')" for part in _DATE_PARTS)
    macro = f"{{% macro strftime_now(format) %}}{{{{ format{dated} }}}}{{% endmacro %}}"
    return f"{macro}{{{{ '' }}}}{template}"


def chat_template_problems(folder: Path) -> list[str]:
    """Return a message if a folder's files hold no chat template that is used by default."""
    names = chat_templates(folder)
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


def chat_templates(folder: Path) -> dict[str, str]:
    """Return the chat templates of a folder by name, as transformers finds them.

    Raises:
        DataError: the tokenizer's config is no JSON object, or its templates have another form.
    """
    templates = _templates_of_config(folder / _CONFIG) if (folder / _CONFIG).is_file() else {}
    files = {file.stem: file for file in sorted((folder / _MORE_TEMPLATES).glob("*.jinja"))}
    if (folder / _TEMPLATE).is_file():
        files[_DEFAULT] = folder / _TEMPLATE
    for name, file in files.items():
        content = read_bytes(file, SOURCE_TEXT, DataError)
        templates[name] = content.decode(errors="replace")
    return templates


def check_templates(folder: Path) -> None:
    """Check that the chat templates of a folder end, before they are rendered in this process.

    Raises:
        DataError: one does not, or needs too much memory.
    """
    for template in chat_templates(folder).values():
        check_ends(with_fixed_date(template), special_tokens(folder), folder)


def special_tokens(folder: Path) -> dict[str, str]:
    """Return the special tokens of a folder by the names that templates use, such as `bos_token`.

    Raises:
        DataError: the tokenizer's config is no JSON object.
    """
    config = folder / _CONFIG
    tokens = {}
    for name, value in (_read_config(config) if config.is_file() else {}).items():
        text = value.get("content") if isinstance(value, dict) else value
        if name.endswith("_token") and isinstance(text, str):
            tokens[name] = text
    return tokens


def _check_encodes(folder: Path) -> None:
    """Check each file of `tokenizers` that transformers may open, in a child first."""
    config = folder / _CONFIG
    versions = _read_config(config).get("fast_tokenizer_files") if config.is_file() else None
    more = versions if isinstance(versions, list) else []
    names = [_TOKENIZER, *(name for name in more if isinstance(name, str))]
    for file in (folder / name for name in names):
        if file.is_file():
            check_json_file(file, TOKENIZER, DataError)
            check_encodes(file)


def _templates_of_config(config: Path) -> dict[str, str]:
    template = _read_config(config).get("chat_template")
    if not template:
        return {}
    if isinstance(template, str):
        return {_DEFAULT: template}
    try:
        pairs = (
            list(template.items())
            if isinstance(template, dict)
            else [(item["name"], item["template"]) for item in template]
        )
    except (TypeError, KeyError) as error:
        raise _form_error(config) from error
    if not all(isinstance(text, str) for pair in pairs for text in pair):
        raise _form_error(config)
    return dict(pairs)


def _form_error(config: Path) -> DataError:
    return DataError(
        f'{config}: `chat_template` is neither a text nor a list of {{"name": …, "template": …}}',
        remedy="copy the checkpoint's file again",
    )


def _read_config(config: Path) -> dict[str, Any]:
    return read_json_object(config, DataError, remedy="copy the checkpoint's file again")
