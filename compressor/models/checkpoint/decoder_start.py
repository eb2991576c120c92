"""The tokens that the decoder of an encoder-decoder starts with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from compressor.artifacts.json_files import read_json_object
from compressor.errors import DataError
from compressor.models.checkpoint.generation_settings import GENERATION_CONFIG
from compressor.models.checkpoint.layout import CONFIG

_START_FIELDS = ("decoder_start_token_id", "bos_token_id")


def first_tokens(folder: Path) -> list[int]:
    """Return the tokens that a decoder starts with, and those that are forced behind them.

    They are fields of generation_config.json, or of config.json, that `generate` of transformers
    reads: ``decoder_start_token_id``, ``forced_bos_token_id`` and ``forced_decoder_ids``.

    Raises:
        DataError: neither file names a start token.
    """
    trees = [_read(folder / GENERATION_CONFIG), config := _read(folder / CONFIG)]
    trees += [part for part in (config.get("decoder"), config.get("text_config")) if part]
    candidates = (tree.get(field) for field in _START_FIELDS for tree in trees)
    start = next((token for token in candidates if isinstance(token, int)), None)
    if start is None:
        raise DataError(
            f"neither {GENERATION_CONFIG} nor {CONFIG} of {folder} names the token that the "
            "decoder starts with (`decoder_start_token_id`)",
            remedy="add it to config.json",
        )
    forced = _first_value(trees, "forced_decoder_ids") or []
    tokens = [start, *(token for _, token in sorted(forced) if isinstance(token, int))]
    first = _first_value(trees, "forced_bos_token_id")
    return [*tokens, first] if isinstance(first, int) and len(tokens) == 1 else tokens


def _first_value(trees: Sequence[Mapping[str, Any]], field: str) -> Any:
    """Return the value of a field in the first file that states one."""
    return next((tree[field] for tree in trees if tree.get(field) is not None), None)


def _read(file: Path) -> dict[str, Any]:
    if not file.is_file():
        return {}
    return read_json_object(file, DataError, remedy="copy it again from where the model comes from")
