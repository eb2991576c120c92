"""Special tokens of generation_config.json, which take precedence over those of config.json."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from compressor.errors import ModelError
from compressor.foreign_files.json_files import read_json_object

GENERATION_CONFIG = "generation_config.json"
_TOKEN_ID = "_token_id"  # noqa: S105  no password
"""End of the names of fields that hold the id of a special token, or a list of ids."""


def read_special_tokens(folder: Path) -> dict[str, Any]:
    """Return the fields of generation_config.json that hold token ids; none without the file.

    Raises:
        ModelError: the file is no JSON mapping, or a field holds something else than token ids.
    """
    file = folder / GENERATION_CONFIG
    if not file.exists() and not file.is_symlink():
        return {}
    remedy = f"copy {GENERATION_CONFIG} again from where the model comes from, or remove it"
    tree = read_json_object(file, ModelError, remedy=remedy)
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
