"""The model that a pipeline starts from, stored as an artifact like every later one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from compressor.artifacts.files import copy_file
from compressor.artifacts.fingerprint import digest_tree
from compressor.artifacts.store import Artifact
from compressor.config.document import Document
from compressor.config.record import Record
from compressor.engine.contract import PassContext, PassOutput
from compressor.engine.plan.config import ModelConfig
from compressor.engine.plan.pipeline import resolve_family
from compressor.errors import ModelError
from compressor.models.architecture import Architecture
from compressor.models.contract import Family
from compressor.models.facts import ModelFacts, planned_facts
from compressor.runtimes.formats import recognize


class SourceModel(ABC):
    """A step without inputs that writes the model to start from.

    Attributes:
        format: name of the model format.
    """

    name: ClassVar[str] = "source"
    version: ClassVar[int] = 1
    tools: ClassVar[tuple[str, ...]] = ()
    format: str

    @abstractmethod
    def fingerprint(self) -> Mapping[str, Any]:
        """Return JSON values that determine the weights, beside the seed and the tools."""

    @abstractmethod
    def facts(self) -> ModelFacts:
        """Return what is known of the model without loading weights."""

    def requires(self, inputs: Mapping[str, Artifact], context: PassContext) -> None:
        """Check the model before it is stored."""

    @abstractmethod
    def run(self, inputs: Mapping[str, Artifact], out: Path, context: PassContext) -> PassOutput:
        """Write the model's files into ``out``."""

    def ensures(self, inputs: Mapping[str, Artifact], out: Path, context: PassContext) -> None:
        """Check the files that ``run`` wrote."""


class InitializedModel(SourceModel):
    """A freshly initialized model of a family."""

    tools = ("torch",)
    format = "torch"

    def __init__(self, family: Family[Any], config: Record) -> None:
        self.family = family
        self.config = config

    def fingerprint(self) -> Mapping[str, Any]:
        """Return the family, its version and the architecture."""
        return {
            "family": self.family.name,
            "version": self.family.version,
            "config": self.config.model_dump(mode="json"),
        }

    def facts(self) -> ModelFacts:
        """Return the family's arithmetic for the architecture."""
        return planned_facts(Architecture(self.family, self.config))

    def run(self, inputs: Mapping[str, Artifact], out: Path, context: PassContext) -> PassOutput:
        """Initialize the module from the seed and save it."""
        import torch

        torch.manual_seed(context.seed)
        self.family.save(self.family.build(self.config), self.config, out)
        return PassOutput()

    def ensures(self, inputs: Mapping[str, Artifact], out: Path, context: PassContext) -> None:
        """Load the module again."""
        from compressor.models.checkpoint.loading import load_module

        load_module(out, context.device)


class ModelFolder(SourceModel):
    """A folder in any installed format, copied into the store file by file."""

    def __init__(self, folder: Path) -> None:
        """Recognize the format of a folder.

        Raises:
            ModelError: no installed format recognizes it.
        """
        self.folder = folder
        self.stored = recognize(folder)
        self.format = self.stored.format.name

    def fingerprint(self) -> Mapping[str, Any]:
        """Return the digest of every file's path and content."""
        return {"files": digest_tree(self.folder)}

    def facts(self) -> ModelFacts:
        """Return the format's facts about the folder."""
        return self.stored.format.facts(self.folder)

    def requires(self, inputs: Mapping[str, Artifact], context: PassContext) -> None:
        """Check the model as its format does, such as for NaN in the weights."""
        self.stored.format.check(self.folder)

    def run(self, inputs: Mapping[str, Artifact], out: Path, context: PassContext) -> PassOutput:
        """Copy every file; with links, the model could change without the store noticing."""
        files = sorted(path for path in self.folder.rglob("*") if path.is_file())
        for index, file in enumerate(files):
            copy_file(file, out / file.relative_to(self.folder))
            context.progress("files", index + 1, len(files), {})
        return PassOutput()


def open_source(model: ModelConfig, document: Document, base: Path) -> SourceModel:
    """Return the source that ``model:`` names, checked as far as that is cheap.

    Raises:
        ConfigError: a family, preset or field is wrong.
        ModelError: the folder does not exist, or holds no model that may be loaded.
    """
    if model.family is not None:
        return InitializedModel(*resolve_family(model.family, model.preset, model.config, document))
    folder = (base / str(model.path)).resolve()
    if not folder.is_dir():
        raise ModelError(
            f"{folder} is not a directory", remedy="`model.path` is relative to the pipeline file"
        )
    source = ModelFolder(folder)
    source.facts()
    return source
