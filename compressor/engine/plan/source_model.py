"""The model a pipeline starts from, made into an artifact like any other."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from compressor.artifacts.files import copy_file
from compressor.artifacts.fingerprint import digest_tree
from compressor.artifacts.kinds import OF_FAMILIES, Kind
from compressor.artifacts.store import Artifact
from compressor.config.document import Document
from compressor.config.record import Record
from compressor.engine.contract import PassContext, PassOutput
from compressor.models.facts import ModelFacts
from compressor.engine.plan.pipeline import ModelConfig, resolve_family
from compressor.errors import ModelError
from compressor.models.checkpoint.files import CONFIG
from compressor.models.contract import Family
from compressor.models.quantized.description import is_packed
from compressor.models.quantized.quantization import QUANTIZATION


class FamilySource:
    """A freshly initialised model of a family."""

    name = "source"
    version = 1
    kind = Kind.TORCH
    tools = ("torch",)
    code: str | None = None

    def __init__(self, family: Family[Any], config: Record) -> None:
        self.family = family
        self.config = config

    def fingerprint(self) -> Mapping[str, Any]:
        """What decides the weights, beside the seed and the tools."""
        return {
            "family": self.family.name,
            "version": self.family.version,
            "config": self.config.model_dump(mode="json"),
        }

    def facts(self) -> ModelFacts:
        """Known from arithmetic alone."""
        parameters = sum(self.family.parameters(self.config).values())
        return ModelFacts(
            self.family.name,
            self.config.model_dump(mode="json"),
            parameters,
            self.family.macs(self.config) or None,
            4 * parameters,
        )

    def requires(self, inputs: Mapping[str, Artifact], context: PassContext) -> None:
        """Nothing to check: the plan validated the config."""

    def run(self, inputs: Mapping[str, Artifact], out: Path, context: PassContext) -> PassOutput:  # noqa: ARG002
        """Initialise from the seed and save."""
        import torch

        from compressor.models.checkpoint.loading import save_module

        torch.manual_seed(context.seed)
        save_module(self.family.build(self.config), self.family.name, self.config, out)
        return PassOutput()

    def ensures(self, inputs: Mapping[str, Artifact], out: Path, context: PassContext) -> None:  # noqa: ARG002
        """It loads again."""
        from compressor.models.checkpoint.loading import load_module

        load_module(out, context.device)


class DirectorySource:
    """A model directory, copied into the store file by file."""

    name = "source"
    version = 1
    tools = ()
    code: str | None = None

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        if (folder / "model.onnx").is_file():
            self.kind = Kind.ONNX
        else:
            self.kind = _kind_of(folder)

    def fingerprint(self) -> Mapping[str, Any]:
        """Every file's path and content."""
        return {"files": digest_tree(self.folder)}

    def facts(self) -> ModelFacts:
        """Read from config.json; nothing is loaded."""
        if self.kind is Kind.ONNX:
            return ModelFacts(
                size_bytes=sum(
                    file.stat().st_size for file in self.folder.rglob("*") if file.is_file()
                )
            )
        from compressor.models.facts import facts_of

        return facts_of(self.folder)

    def requires(self, inputs: Mapping[str, Artifact], context: PassContext) -> None:  # noqa: ARG002
        """No NaN or infinity in the weights; no external data from outside the folder."""
        if self.kind in OF_FAMILIES:
            from compressor.models.checkpoint.loading import check_finite

            check_finite(self.folder)
        else:
            from compressor.graphs.files import read_graph

            read_graph(self.folder)

    def run(self, inputs: Mapping[str, Artifact], out: Path, context: PassContext) -> PassOutput:  # noqa: ARG002
        """Copy; a link would let the model change behind the store's back."""
        files = sorted(path for path in self.folder.rglob("*") if path.is_file())
        for index, file in enumerate(files):
            copy_file(file, out / file.relative_to(self.folder))
            context.progress("files", index + 1, len(files), {})
        return PassOutput()

    def ensures(self, inputs: Mapping[str, Artifact], out: Path, context: PassContext) -> None:
        """The copy is byte for byte; its first consumer loads it."""


def _kind_of(folder: Path) -> Kind:
    """Of a folder with a config.json of a family."""
    if (folder / QUANTIZATION).is_file():
        return Kind.QUANTIZED
    try:
        tree = json.loads((folder / CONFIG).read_bytes())
    except (OSError, ValueError):
        return Kind.TORCH  # what is wrong with it is told when it is opened
    return Kind.AWQ if isinstance(tree, dict) and is_packed(tree) else Kind.TORCH


def open_source(
    model: ModelConfig, document: Document, base: Path
) -> FamilySource | DirectorySource:
    """What ``model:`` names, checked as far as that is cheap.

    Raises:
        ConfigError: a family, preset or field is wrong.
        ModelError: the directory is not there, or holds no model that may be loaded.
    """
    if model.family is not None:
        return FamilySource(*resolve_family(model.family, model.preset, model.config, document))
    folder = (base / str(model.path)).resolve()
    if not folder.is_dir():
        raise ModelError(
            f"{folder} is not a directory", remedy="`model.path` is relative to the pipeline file"
        )
    source = DirectorySource(folder)
    if source.kind in OF_FAMILIES:
        from compressor.models.checkpoint.loading import read_description

        read_description(folder)
    return source
