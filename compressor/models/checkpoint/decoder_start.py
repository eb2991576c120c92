"""The tokens that the decoder of an encoder-decoder starts with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compressor.config.discovery import suggestion
from compressor.errors import DataError, UsageError
from compressor.foreign_files.json_files import read_json_object
from compressor.models.checkpoint.generation_settings import GENERATION_CONFIG
from compressor.models.checkpoint.layout import CONFIG
from compressor.models.checkpoint.tokenizer_json import added_tokens

_START_FIELDS = ("decoder_start_token_id", "bos_token_id")
_TASKS, _TRANSCRIBE = "task_to_id", "transcribe"
_NO_TIMESTAMPS = "no_timestamps_token_id"
_LANGUAGE_FORMS = ("{}", "__{}__", "<lang:{}>", "<|{}|>")
"""Spellings of the token of a language: of NLLB and mBART, M2M100, Speech2Text, and others."""


@dataclass(frozen=True, slots=True)
class DecoderStart:
    """The tokens that a decoder starts with."""

    tokens: tuple[int, ...]
    """The start token, and those forced behind it."""
    languages: tuple[int, ...] = ()
    """Tokens of languages, the most probable of which follows the start token; none if the language
    is known or the model has no such tokens."""


def decoder_start(
    folder: Path, *, language: str | None = None, task: str | None = None
) -> DecoderStart:
    """Return the tokens that `generate` of transformers starts a decoder with.

    They follow from fields of generation_config.json, or of config.json: the start token,
    ``forced_bos_token_id``, ``forced_decoder_ids``, and Whisper's tokens of language, task and
    missing timestamps. Other models have tokens of languages in their vocabulary.

    Args:
        folder: the model.
        language: the language that is spoken, or translated to; by default that of the files.
        task: ``transcribe`` or ``translate``; by default that of the files.

    Raises:
        DataError: neither file names a start token.
        UsageError: the model has no tokens for the language or the task.
    """
    trees = _trees(folder)
    candidates = (tree.get(field) for field in _START_FIELDS for tree in trees)
    start = next((token for token in candidates if isinstance(token, int)), None)
    if start is None:
        raise DataError(
            f"neither {GENERATION_CONFIG} nor {CONFIG} of {folder} names the token that the "
            "decoder starts with (`decoder_start_token_id`)",
            remedy="add it to config.json",
        )
    languages, tasks = _token_map(trees, "lang_to_id"), _token_map(trees, _TASKS)
    if languages or tasks or _first_value(trees, _NO_TIMESTAMPS) is not None:
        return _speech_start(trees, start, language, task)
    if task is not None:
        raise UsageError(
            f"{folder} has no tokens for tasks: {GENERATION_CONFIG} has no `{_TASKS}`",
            remedy="leave the task out",
        )
    if language is not None:
        return DecoderStart((start, _language_in_vocabulary(folder, language)))
    tokens = [start, *(token for _, token in _forced(trees) if token is not None)]
    first = _first_value(trees, "forced_bos_token_id")
    if isinstance(first, int) and len(tokens) == 1:
        tokens.append(first)
    return DecoderStart(tuple(tokens))


def first_tokens(
    folder: Path, *, language: str | None = None, task: str | None = None
) -> list[int]:
    """Return the first tokens for texts that are known, without those of a language to detect.

    Raises:
        As ``decoder_start``.
    """
    return list(decoder_start(folder, language=language, task=task).tokens)


def language_tokens(folder: Path) -> frozenset[int]:
    """Return the tokens of languages that generation_config.json lists, as Whisper's does."""
    return frozenset(_token_map(_trees(folder), "lang_to_id").values())


def _speech_start(
    trees: Sequence[Mapping[str, Any]], start: int, language: str | None, task: str | None
) -> DecoderStart:
    """Return the start of a model with Whisper's tokens; see its ``_retrieve_init_tokens``."""
    languages, tasks = _token_map(trees, "lang_to_id"), _token_map(trees, _TASKS)
    language = _first_value(trees, "language") if language is None else language
    task = _first_value(trees, "task") if task is None else task
    tokens: list[int | None] = [start]
    if language is None and task is None:
        tokens += [token for _, token in _forced(trees)]
    if language is not None:
        tokens[1:2] = [_language_token(languages, language)]
    detected = () if len(tokens) > 1 and tokens[1] is not None else tuple(languages.values())
    if detected and len(tokens) == 1:
        tokens.append(None)
    if task is not None:
        tokens.append(_task_token(tasks, task))
    elif language is not None and _TRANSCRIBE in tasks:
        tokens.append(tasks[_TRANSCRIBE])
    silent = _first_value(trees, _NO_TIMESTAMPS)
    if isinstance(silent, int) and tokens[-1] != silent:
        tokens.append(silent)
    return DecoderStart(tuple(token for token in tokens if token is not None), detected)


def _language_token(languages: Mapping[str, int], language: str) -> int:
    """Return the token of a language: ``en``, ``<|en|>`` or, as transformers names it, english."""
    name = language.lower()
    if languages and name not in languages:
        from transformers.models.whisper.tokenization_whisper import TO_LANGUAGE_CODE

        name = f"<|{TO_LANGUAGE_CODE.get(name, name)}|>"
    if name not in languages:
        known = [token.strip("<|>") for token in languages]
        raise UsageError(
            f"the model has no token for the language {language!r}",
            remedy=suggestion(language, known)
            if known
            else "leave the language out: the model has one language",
        )
    return languages[name]


def _task_token(tasks: Mapping[str, int], task: str) -> int:
    if task not in tasks:
        raise UsageError(
            f"the model has no token for the task {task!r}",
            remedy=f"one of {', '.join(tasks)}" if tasks else "leave the task out",
        )
    return tasks[task]


def _language_in_vocabulary(folder: Path, language: str) -> int:
    """Return the token of a language that a model of several languages translates to."""
    file = folder / "tokenizer.json"
    tokens = added_tokens(file) if file.is_file() else {}
    found = (tokens.get(form.format(language)) for form in _LANGUAGE_FORMS)
    token = next((token for token in found if token is not None), None)
    if token is None:
        raise UsageError(
            f"the tokenizer of {folder} has no token for the language {language!r}",
            remedy="spell it as the tokenizer does, such as `deu_Latn` or `de_DE`; leave it out "
            "for a model of one language",
        )
    return token


def _trees(folder: Path) -> list[Mapping[str, Any]]:
    """Return the files that name tokens, those that count first."""
    trees: list[Mapping[str, Any]] = [_read(folder / GENERATION_CONFIG)]
    config = _read(folder / CONFIG)
    trees += [config, *(part for name in ("decoder", "text_config") if (part := config.get(name)))]
    return trees


def _forced(trees: Sequence[Mapping[str, Any]]) -> list[tuple[int, int | None]]:
    """Return positions and tokens of ``forced_decoder_ids``; None for a language to detect."""
    forced = _first_value(trees, "forced_decoder_ids") or []
    try:
        return sorted(((int(position), token) for position, token in forced), key=lambda e: e[0])
    except (TypeError, ValueError) as error:
        raise DataError(
            f"{GENERATION_CONFIG}: `forced_decoder_ids` is {forced!r}, expected a list of "
            "[position, token]",
            remedy="copy it again from where the model comes from",
        ) from error


def _token_map(trees: Sequence[Mapping[str, Any]], field: str) -> dict[str, int]:
    value = _first_value(trees, field)
    return dict(value) if isinstance(value, Mapping) else {}


def _first_value(trees: Sequence[Mapping[str, Any]], field: str) -> Any:
    """Return the value of a field in the first file that states one."""
    return next((tree[field] for tree in trees if tree.get(field) is not None), None)


def _read(file: Path) -> dict[str, Any]:
    if not file.is_file():
        return {}
    return read_json_object(file, DataError, remedy="copy it again from where the model comes from")
