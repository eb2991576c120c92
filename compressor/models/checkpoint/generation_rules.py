"""Rules of generation_config.json for the tokens that a model may generate."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from compressor.errors import ModelError
from compressor.foreign_files.json_files import read_json_object
from compressor.models.checkpoint.generation_settings import GENERATION_CONFIG
from compressor.models.checkpoint.layout import CONFIG

_REMEDY = "copy it again from where the model comes from"
_END = "eos_token_id"


def _as_tuple(value: Any) -> Any:
    """Return lists as tuples, a single number as a tuple, and null as an empty one."""
    if value is None or isinstance(value, int):
        return () if value is None else (value,)
    return tuple(map(_nested, value)) if isinstance(value, list) else value


def _nested(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


_Tokens = Annotated[tuple[int, ...], BeforeValidator(_as_tuple)]


def _default(value: float) -> BeforeValidator:
    return BeforeValidator(lambda given: value if given is None else given)


class GenerationRules(BaseModel):
    """The fields that decide which token follows, as `generate` of transformers reads them.

    Beams and sampling are not among them: they are options of a search, and no property of a model.
    """

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)

    eos_token_id: _Tokens = ()
    """Tokens that end a text."""
    suppress_tokens: _Tokens = ()
    """Tokens that are never generated."""
    begin_suppress_tokens: _Tokens = ()
    """Tokens that are not generated first."""
    bad_words_ids: Annotated[
        tuple[Annotated[tuple[int, ...], Field(min_length=1)], ...], BeforeValidator(_as_tuple)
    ] = ()
    """Sequences of tokens that are never generated."""
    no_repeat_ngram_size: Annotated[int, _default(0)] = 0
    """Length of sequences that occur at most once; 0 for no such rule."""
    repetition_penalty: Annotated[float, _default(1.0), Field(gt=0)] = 1.0
    """Divisor of the positive logits, and factor of the negative ones, of tokens that occurred
    (Keskar et al. 2019)."""
    min_length: Annotated[int, _default(0)] = 0
    """Number of tokens, those at the start included, before a text may end."""
    min_new_tokens: Annotated[int, _default(0)] = 0
    """Number of generated tokens before a text may end."""
    forced_eos_token_id: _Tokens = ()
    """Tokens of which one is generated where the largest number of tokens is reached."""


def read_generation_rules(folder: Path) -> GenerationRules:
    """Return the rules of generation_config.json, or of config.json where there is no such file.

    Raises:
        ModelError: a file is damaged, or a field holds something else than expected.
    """
    file = folder / GENERATION_CONFIG
    if file.is_file():
        return _read_rules(file, read_json_object(file, ModelError, remedy=_REMEDY))
    return _read_rules(folder / CONFIG, _settings_of_config(folder))


def read_end_tokens(folder: Path, tokenizer: Any) -> frozenset[int]:
    """Return the tokens that end an answer, by all files that name some.

    These are generation_config.json, config.json with its ``text_config`` (published checkpoints
    name some in only one of them), and the tokenizer.

    Args:
        folder: the model.
        tokenizer: its tokenizer of transformers.

    Raises:
        ModelError: a file is damaged, or a field holds something else than expected.
    """
    config = {name: v for name, v in _settings_of_config(folder).items() if name == _END}
    tokens = {
        *read_generation_rules(folder).eos_token_id,
        *_read_rules(folder / CONFIG, config).eos_token_id,
    }
    return frozenset(tokens | ({tokenizer.eos_token_id} - {None}))


def _settings_of_config(folder: Path) -> dict[str, Any]:
    """Return the fields of config.json and of its parts for text; none without the file."""
    file = folder / CONFIG
    config = read_json_object(file, ModelError, remedy=_REMEDY) if file.is_file() else {}
    parts = [config.get("text_config"), config.get("decoder"), config]
    tree: dict[str, Any] = {}
    for part in (part for part in parts if isinstance(part, dict)):
        tree |= {name: value for name, value in part.items() if value is not None}
    return tree


def _read_rules(file: Path, tree: Mapping[str, Any]) -> GenerationRules:
    fields = {name: tree[name] for name in GenerationRules.model_fields if name in tree}
    try:
        return GenerationRules.model_validate_json(json.dumps(fields))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        name = ".".join(map(str, first["loc"]))
        raise ModelError(
            f"{file}: `{name}` is {first['input']!r}: {first['msg']}", remedy=_REMEDY
        ) from error
