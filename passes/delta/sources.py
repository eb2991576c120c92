"""The files of the new model, and the base that its package applies to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from compressor.artifacts.artifact import Artifact, is_artifact
from compressor.engine.contract import PassContext
from compressor.errors import RequirementError
from compressor.models.adapters.base import BASE, AdapterBase, find_base, read_base, write_base
from compressor.models.adapters.layout import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from compressor.runtimes.delta.identity import Base, open_base
from compressor.runtimes.formats import StoredModel
from passes.delta.config import ADAPTER, DeltaConfig


@dataclass(frozen=True, slots=True)
class Source:
    """The new model."""

    format: str
    files: Mapping[str, Path]
    base_name: str
    """Name of the base for messages."""


def check_stated_base(config: DeltaConfig, format_name: str) -> None:
    """Check that a model is at ``base_path``, and that it has the stated digest.

    An adapter states the digest of its base itself, which is known once it is trained.

    Args:
        config: of the pass.
        format_name: format of the new model.

    Raises:
        RequirementError: it is not there, has another digest, or none is stated.
        ModelError: it cannot be read.
    """
    if config.base_path is None:
        return
    path = Path(config.base_path)
    if not path.exists():
        raise RequirementError(
            f"`base_path: {config.base_path}` does not exist",
            remedy=f"name an artifact, or a model's folder or file; a relative path starts at "
            f"{Path.cwd()}",
        )
    if config.base_digest is not None or format_name != ADAPTER:
        _check_digest(config, open_base(path), config.base_digest)


def find_package_base(config: DeltaConfig, parent: Artifact, context: PassContext) -> Base:
    """Return the model that the package applies to.

    Raises:
        RequirementError: none is named, or it is another one than the config or the adapter names.
        ModelError: it cannot be read, or an adapter's base is not found.
    """
    if config.base_path is not None:
        base = open_base(Path(config.base_path))
        _check_digest(config, base, _expected_digest(config, parent))
    elif "base" in context.artifacts:
        base = open_base(context.artifacts["base"].path)
    elif parent.manifest.format == ADAPTER:
        model = find_base(parent.model)
        base = open_base(model.parent if is_artifact(model.parent) else model)
    else:
        raise RequirementError(
            "the model that the package applies to is not named",
            remedy="set `base` to an earlier step, such as `source`, or `base_path`",
        )
    _check_encoding(config, parent, base)
    return base


def open_new_model(parent: Artifact, base: Base, work: Path) -> Source:
    """Return the files of the new model; of an adapter those that PEFT reads, and ``base.json``.

    Raises:
        RequirementError: the weights of an adapter are pickled.
    """
    format_name = parent.manifest.format
    stored = StoredModel.of(parent)
    if format_name != ADAPTER or base.format == ADAPTER:
        return Source(format_name, stored.format.files(stored.path), base.path.name)
    names = (ADAPTER_CONFIG, ADAPTER_WEIGHTS)
    if missing := [name for name in names if not (parent.model / name).is_file()]:
        raise RequirementError(
            f"the adapter has no {missing[0]}",
            remedy="save it with PEFT's `save_pretrained`, which writes safetensors",
        )
    files = {name: parent.model / name for name in names}
    if (parent.model / BASE).is_file():
        files[BASE] = parent.model / BASE
        return Source(format_name, files, read_base(parent.model).name)
    name = base.path.name if base.artifact is None else base.path.parent.name
    write_base(AdapterBase(artifact=base.artifact, digest=base.digest, name=name), work)
    return Source(format_name, {**files, BASE: work / BASE}, name)


def _expected_digest(config: DeltaConfig, parent: Artifact) -> str | None:
    """Return the digest that the config, or else the adapter, states for the base."""
    if config.base_digest is not None:
        return config.base_digest
    is_adapter = parent.manifest.format == ADAPTER and (parent.model / BASE).is_file()
    return read_base(parent.model).digest if is_adapter else None


def _check_digest(config: DeltaConfig, base: Base, expected: str | None) -> None:
    """Check the digest of the model at ``base_path``."""
    if expected != base.digest:
        what = "no digest is stated" if expected is None else f"{expected[:12]}… is expected"
        raise RequirementError(
            f"the model at {config.base_path} has the digest {base.digest}; {what}",
            remedy="set `base_digest` to it if this is the right model",
        )


def _check_encoding(config: DeltaConfig, parent: Artifact, base: Base) -> None:
    """Check that the encoding fits the model, and the base the adapter."""
    is_update = parent.manifest.format == ADAPTER and base.format != ADAPTER
    if not is_update and config.encoding in {"int8", "float16"}:
        raise RequirementError(
            f"`encoding: {config.encoding}` rounds the factors of an adapter, and this is a patch "
            f"between two models of the format {parent.manifest.format!r}",
            remedy="set `encoding: exact`, or leave it out",
        )
    if is_update and (parent.model / BASE).is_file():
        recorded = read_base(parent.model)
        if recorded.digest != base.digest:
            raise RequirementError(
                f"the adapter was trained on {recorded.name} with the digest "
                f"{recorded.digest[:12]}…; {base.path} has {base.digest[:12]}…",
                remedy="name the base that the adapter was trained on",
            )
    if not is_update and parent.manifest.format != base.format:
        raise RequirementError(
            f"the base is of the format {base.format!r}, and the new model of "
            f"{parent.manifest.format!r}",
            remedy="name two versions of a model in one format",
        )
