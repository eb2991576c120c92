"""Adapters that a model is opened with, by name."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np

from compressor.artifacts.artifact import MANIFEST
from compressor.errors import UsageError
from compressor.generation.requests import EncodedPrompt
from compressor.models.adapters.layout import ADAPTER_CONFIG
from compressor.runtimes.delta.slot import check_applied


def named_adapters(paths: Iterable[str]) -> dict[str, Path]:
    """Return the folders of adapters by name.

    Args:
        paths: artifacts or folders, each as ``PATH`` or ``NAME=PATH``; without a name it is that of
            the folder. Every file of an artifact is verified, and of a folder that `apply` wrote.

    Raises:
        UsageError: a path holds no adapter, a name is empty, or two adapters have one name.
        DamagedArtifactError: a file differs from the manifest, or from what was applied.
    """
    adapters: dict[str, Path] = {}
    for text in paths:
        name, separator, rest = text.partition("=")
        path = Path(rest if separator else text)
        name = name if separator else path.resolve().name
        if not name:
            raise UsageError(
                f"--adapter {text!r} has an empty name", remedy="give --adapter NAME=PATH"
            )
        if name in adapters:
            raise UsageError(
                f"two adapters have the name {name!r}", remedy="name them: --adapter NAME=PATH"
            )
        adapters[name] = _folder_of(path)
    return adapters


def _folder_of(path: Path) -> Path:
    from compressor.generation.generate import model_at

    if path.is_dir() and not any((path / name).is_file() for name in (MANIFEST, ADAPTER_CONFIG)):
        raise _no_adapter(path)
    model = model_at(path)
    if not (model.path / ADAPTER_CONFIG).is_file():
        raise _no_adapter(path)
    check_applied(path)
    return model.path


def _no_adapter(path: Path) -> UsageError:
    return UsageError(
        f"{path} is no adapter: it has no {ADAPTER_CONFIG}",
        remedy="name the artifact of a `lora` step, or the folder that `apply` wrote",
    )


def with_adapter(prompt: EncodedPrompt, adapter: str | None) -> EncodedPrompt:
    """Return a prompt that is read and answered under an adapter.

    Its first prefix key is another than that of the same prompt under another adapter, so that no
    row lends it keys and values that another adapter made.
    """
    if adapter is None:
        return prompt
    salt = int.from_bytes(hashlib.sha256(adapter.encode()).digest()[:8], "little", signed=True)
    keys_T = prompt.prefix_keys_T.copy()
    keys_T[:1] ^= np.int64(salt)
    return replace(prompt, prefix_keys_T=keys_T, adapter=adapter)
