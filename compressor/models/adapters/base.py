"""``base.json`` of an adapter: the model that it was trained on, by id and digest.

An adapter of this project is a folder in PEFT's own layout with this file beside it::

    adapter_config.json         PEFT's config
    adapter_model.safetensors   the factors of each target module
    base.json                   {"artifact": …, "digest": …, "name": …}

PEFT ignores the file. What opens an adapter here opens its base too, and compares the digest.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

from pydantic import BaseModel, ConfigDict, field_validator

from compressor.artifacts.artifact import MODEL, is_artifact, open_artifact
from compressor.artifacts.errors_from_os import writing
from compressor.artifacts.files import write_atomic
from compressor.artifacts.fingerprint import digest_file, digest_json
from compressor.errors import ModelError
from compressor.foreign_files.json_files import read_json_record
from compressor.models.checkpoint.companions import model_files
from compressor.models.checkpoint.weight_files import read_weight_files

BASE = "base.json"
BASE_KEY = "autoglm_compress.adapter_base"
"""Metadata key of exported models for the digest of the model that they were exported from."""
_SHORT_ID = 12
_DIGEST = re.compile(r"[0-9a-f]{64}")
_COPY_AGAIN = "copy the adapter again"


class AdapterBase(BaseModel):
    """Content of ``base.json``."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    artifact: str | None
    """Id of the artifact with the base; None for a model outside of a store."""
    digest: str
    """``model_digest`` of the base's folder."""
    name: str
    """Name or path of the base, as the user or the store wrote it."""

    @field_validator("artifact", "digest")
    @classmethod
    def _check_sha256(cls, value: str | None) -> str | None:
        if value is not None and _DIGEST.fullmatch(value) is None:
            raise ValueError("expected 64 hexadecimal digits")
        return value


def model_digest(folder: Path) -> str:
    """Return the digest of the name and content of every file that a model uses.

    It is what the store hashes of a model that a pipeline starts from. A copy of the model has the
    same digest, with or without other files beside it, such as a README.

    Args:
        folder: a model folder with config.json and safetensors weights.

    Raises:
        ModelError: the folder holds no such model.
        StorageError: a file cannot be read.
    """
    weights = read_weight_files(folder).checked()
    files = {file.relative_to(folder).as_posix(): file for file in model_files(folder, weights)}
    return digest_json({name: digest_file(file) for name, file in files.items()})


def write_base(base: AdapterBase, folder: Path) -> None:
    """Write ``base.json`` into the folder of an adapter.

    Raises:
        StorageError: the disk is full, or the folder cannot be written.
    """
    with writing(folder):
        text = json.dumps(base.model_dump(), indent=1, sort_keys=True)
        write_atomic(folder / BASE, f"{text}\n".encode())


def read_base(adapter: Path) -> AdapterBase:
    """Return the base that an adapter refers to.

    Raises:
        ModelError: the adapter has no ``base.json``, or it is damaged.
    """
    file = adapter / BASE
    if not file.is_file():
        raise ModelError(
            f"{adapter} does not state its base: it has no {BASE}",
            remedy="train the adapter with a `lora` step, which writes it",
        )
    return read_json_record(file, AdapterBase, ModelError, remedy=_COPY_AGAIN)


def check_base(adapter: Path, folder: Path) -> None:
    """Check that a model folder holds the base of an adapter, by the digest of its files.

    Raises:
        ModelError: it is another model, or a file of it has changed; or ``base.json`` is missing or
            damaged.
    """
    base = read_base(adapter)
    if (actual := model_digest(folder)) != base.digest:
        raise ModelError(
            f"{folder} is not the base of the adapter {adapter}: its files have the digest "
            f"{actual[:_SHORT_ID]}…, and the adapter was trained on {base.name} with "
            f"{base.digest[:_SHORT_ID]}…",
            remedy="name the model that the adapter was trained on, or train an adapter on this "
            "one",
        )


def check_exported(adapter: Path, digest: str, exported: Path, remedy: str) -> None:
    """Check that a model was exported from the base of an adapter.

    Args:
        adapter: folder of the adapter.
        digest: of the model that the other was exported from, as its metadata state it.
        exported: for messages.
        remedy: for messages.

    Raises:
        ModelError: it was exported from another model; or ``base.json`` is missing or damaged.
    """
    base = read_base(adapter)
    if base.digest != digest:
        raise ModelError(
            f"the adapter {adapter} was trained on {base.name} ({base.digest[:_SHORT_ID]}…), and "
            f"{exported} was exported from another model ({digest[:_SHORT_ID]}…)",
            remedy=remedy,
        )


def find_base(adapter: Path) -> Path:
    """Return the model folder of an adapter's base, whose digest has been checked.

    The artifact is looked for in the store that holds the adapter; a base outside of a store is
    found by its path.

    Raises:
        ModelError: the base is not found, or it is another model than the adapter was trained on.
    """
    folder = locate_base(adapter)
    if folder is not None:
        check_base(adapter, folder)
        return folder
    base = read_base(adapter)
    wanted = base.name if base.artifact is None else f"the artifact {base.artifact[:_SHORT_ID]}"
    raise ModelError(
        f"the base of the adapter {adapter} is not found: {wanted}",
        remedy=f"put the base ({base.name}) into the store that holds the adapter, with "
        "`autoglm-compress unpack`, or run its pipeline again",
    )


def locate_base(adapter: Path) -> Path | None:
    """Return the model folder that an adapter refers to, whose content is not checked.

    None if there is no such folder.

    Raises:
        ModelError: as ``read_base``.
    """
    return next(_candidates(adapter, read_base(adapter)), None)


def _candidates(adapter: Path, base: AdapterBase) -> Iterator[Path]:
    """Yield existing model folders that the record refers to, the artifact first."""
    if base.artifact is not None:
        short = base.artifact[:_SHORT_ID]
        for path in dict.fromkeys((adapter.absolute(), adapter.resolve())):
            for root in path.parents:
                for folder in sorted(root.glob(f"*-{short}")):
                    if is_artifact(folder) and open_artifact(folder).id == base.artifact:
                        yield folder / MODEL
    named = Path(base.name)
    if named.is_absolute() and named.is_dir():
        yield named / MODEL if is_artifact(named) else named
