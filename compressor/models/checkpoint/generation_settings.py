"""Special tokens of generation_config.json, which take precedence over those of config.json."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from compressor.artifacts.errors_from_os import reading
from compressor.errors import ModelError

GENERATION_CONFIG = "generation_config.json"
_TOKEN_ID = "_token_id"  # noqa: S105  no password
"""End of the names of fields that hold the id of a special token, or a list of ids."""


def read_special_tokens(folder: Path) -> dict[str, Any]:
    """Return the fields of generation_config.json that hold token ids; none without the file.

    Raises:
        ModelError: the file is no JSON mapping, or a field holds something else than token ids.
    """
    file = folder / GENERATION_CONFIG
    if not file.is_file():
        return {}
    with reading(file):
        content = file.read_bytes()
    remedy = f"copy {GENERATION_CONFIG} again from where the model comes from, or remove it"
    try:
        tree = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ModelError(
            f"{GENERATION_CONFIG} is not valid JSON: {error}", remedy=remedy
        ) from error
    if not isinstance(tree, dict):
        raise ModelError(f"{GENERATION_CONFIG} is no mapping", remedy=remedy)
    tokens = {name: value for name, value in tree.items() if name.endswith(_TOKEN_ID)}
    for name, value in tokens.items():
        ids = value if isinstance(value, list) else [value]
        if value is not None and not all(type(token) is int for token in ids):
            raise ModelError(
                f"{GENERATION_CONFIG}: `{name}` is {value!r}, expected a token id or a list of "
                "them",
                remedy=remedy,
            )
    return tokens
