"""Checkpoints inside a pass: whole or not there, and refused when they are damaged or another run's."""

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
    """Why a checkpoint cannot be gone on from; training starts anew, and says so."""


def save_checkpoint(path: Path, identity: str, state: dict[str, Any]) -> None:
    """Write the state after its sha256, atomically."""
    buffer = io.BytesIO()
    torch.save({"identity": identity, "state": state}, buffer)
    content = buffer.getvalue()
    write_atomic(path, hashlib.sha256(content).digest() + content)


def load_checkpoint(path: Path, identity: str) -> dict[str, Any]:
    """The state that ``save_checkpoint`` wrote for the same identity.

    Raises:
        UnusableCheckpointError: the content is not what was written, or it belongs to another run.
    """
    content = path.read_bytes()
    if hashlib.sha256(content[_DIGEST_BYTES:]).digest() != content[:_DIGEST_BYTES]:
        raise UnusableCheckpointError(f"{path.name} is damaged")
    try:
        saved = torch.load(io.BytesIO(content[_DIGEST_BYTES:]), weights_only=True)
    except (UnpicklingError, RuntimeError) as error:
        raise UnusableCheckpointError(f"{path.name} is no checkpoint: {error}") from error
    if saved["identity"] != identity:
        raise UnusableCheckpointError(f"{path.name} belongs to another run")
    state: dict[str, Any] = saved["state"]
    return state
