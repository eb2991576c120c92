"""Checkpoints of a running pass: written atomically, and refused if damaged or of another run."""

from __future__ import annotations

import hashlib
import io
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any

import torch

from compressor.artifacts.files import write_atomic

if TYPE_CHECKING:
    from pathlib import Path

_DIGEST_BYTES = hashlib.sha256().digest_size


class UnusableCheckpointError(Exception):
    """A checkpoint is damaged or belongs to another run; the pass starts from the beginning."""


def save_checkpoint(path: Path, identity: str, state: dict[str, Any]) -> None:
    """Write the state, preceded by its sha256, atomically.

    Args:
        path: File to replace.
        identity: Digest of the inputs of the run; the same string is needed to load the file.
        state: Plain values and tensors that ``torch.load(weights_only=True)`` reads.
    """
    buffer = io.BytesIO()
    torch.save({"identity": identity, "state": state}, buffer)
    content = buffer.getvalue()
    write_atomic(path, hashlib.sha256(content).digest() + content)


def load_checkpoint(path: Path, identity: str) -> dict[str, Any]:
    """Return the state that ``save_checkpoint`` wrote with the same identity.

    Raises:
        UnusableCheckpointError: The file is damaged, or its identity is another.
    """
    content = path.read_bytes()
    if hashlib.sha256(content[_DIGEST_BYTES:]).digest() != content[:_DIGEST_BYTES]:
        raise UnusableCheckpointError(f"{path.name} is damaged")
    try:
        saved = torch.load(io.BytesIO(content[_DIGEST_BYTES:]), weights_only=True)
    except (UnpicklingError, RuntimeError) as error:
        raise UnusableCheckpointError(f"{path.name} is not a checkpoint: {error}") from error
    if saved["identity"] != identity:
        raise UnusableCheckpointError(f"{path.name} belongs to another run")
    state: dict[str, Any] = saved["state"]
    return state
