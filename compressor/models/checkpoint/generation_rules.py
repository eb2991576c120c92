"""Rules of generation_config.json for the tokens that a model may generate."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from compressor.errors import ModelError
from compressor.foreign_files.json_files import read_json_object
from compressor.models.checkpoint.generation_settings import GENERATION_CONFIG
from compressor.models.checkpoint.layout import CONFIG


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
    remedy = "copy it again from where the model comes from"
    file = folder / GENERATION_CONFIG
    if file.is_file():
        tree = read_json_object(file, ModelError, remedy=remedy)
    else:
        file = folder / CONFIG
        config = read_json_object(file, ModelError, remedy=remedy) if file.is_file() else {}
        parts = [config.get("text_config"), config.get("decoder"), config]
        tree = {}
        for part in (part for part in parts if isinstance(part, dict)):
            tree |= {name: value for name, value in part.items() if value is not None}
    fields = {name: tree[name] for name in GenerationRules.model_fields if name in tree}
    try:
        return GenerationRules.model_validate_json(json.dumps(fields))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        name = ".".join(map(str, first["loc"]))
        raise ModelError(
            f"{file}: `{name}` is {first['input']!r}: {first['msg']}", remedy=remedy
        ) from error
