"""Names and layout of the files in a model folder.

A model of a family other than ``transformers``::

    config.json         {"family": "autoglm-phone", "version": 1, "config": {…}}
    model.safetensors   every tensor once; of tied ones, the first name in alphabetical order

Where linear layers are packed, config.json also has a ``quantization_config``, as checkpoints of
transformers do.

A checkpoint of transformers has a ``model_type`` in its config.json. It may be stored in shards,
``model-00001-of-00004.safetensors`` and so on, with an index ``model.safetensors.index.json`` that
maps tensor names to shards.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from compressor.artifacts.errors_from_os import writing
from compressor.config.record import Record
from compressor.errors import ModelError
from compressor.foreign_files.json_files import read_json_object

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"


def read_config(folder: Path) -> dict[str, Any]:
    """Return the content of a config.json that has been checked (``read_description``)."""
    return read_json_object(folder / CONFIG, ModelError, remedy=None)


def write_description(
    family: str,
    version: int,
    config: Record,
    folder: Path,
    extra: Mapping[str, Any] | None = None,
) -> None:
    """Write config.json of a family other than ``transformers``.

    Args:
        family: name of the family.
        version: version of the family.
        config: the architecture.
        folder: the folder to write to.
        extra: fields beside the architecture, such as ``quantization_config``.

    Raises:
        StorageError: the disk is full, or the folder cannot be written.
    """
    description = {
        "family": family,
        "version": version,
        "config": config.model_dump(mode="json"),
        **(extra or {}),
    }
    with writing(folder):
        (folder / CONFIG).write_text(
            json.dumps(description, indent=1, sort_keys=True) + "\n", encoding="utf-8"
        )
