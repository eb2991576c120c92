"""The model that a pipeline starts from, stored as an artifact like every later one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from compressor.artifacts.artifact import Artifact
from compressor.artifacts.files import copy_file
from compressor.artifacts.fingerprint import digest_file, digest_json
from compressor.config.document import Document
from compressor.config.record import Record
from compressor.engine.contract import PassContext, PassOutput
from compressor.engine.plan.config import ModelConfig
from compressor.engine.plan.module_source import complete_module
from compressor.engine.plan.pipeline import resolve_family
from compressor.errors import ModelError
from compressor.foreign_files.real_path import real_path
from compressor.models.architecture import Architecture
from compressor.models.contract import Family
from compressor.models.facts import ModelFacts, planned_facts
from compressor.models.families.module.family import Module
from compressor.runtimes.format_records import ModuleSource
from compressor.runtimes.formats import recognize


class SourceModel(ABC):
    """A step without inputs that writes the model to start from.

    Attributes:
        format: name of the model format.
        tools: distributions whose versions can change the weights.
    """

    name: ClassVar[str] = "source"
    version: ClassVar[int] = 1
    tools: tuple[str, ...] = ()
    format: str

    @abstractmethod
    def fingerprint(self) -> Mapping[str, Any]:
        """Return JSON values that determine the weights, beside the seed and the tools."""

    @abstractmethod
    def facts(self) -> ModelFacts:
        """Return what is known of the model without loading weights."""

    def notes(self) -> tuple[str, ...]:
        """Return choices that were made between two readings of the model's files."""
        return ()

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


class ModelFiles(SourceModel):
    """A model in any installed format, copied into the store file by file."""

    def __init__(self, path: Path) -> None:
        """Recognize the format of a folder or file.

        Raises:
            ModelError: no installed format recognizes it.
        """
        self.stored = recognize(path)
        self.format = self.stored.format.name

    def fingerprint(self) -> Mapping[str, Any]:
        """Return the digest of the name and content of every file that the model uses."""
        files = self.stored.format.files(self.stored.path)
        return {"files": digest_json({name: digest_file(file) for name, file in files.items()})}

    def facts(self) -> ModelFacts:
        """Return the format's facts about the model."""
        return self.stored.format.facts(self.stored.path)

    def notes(self) -> tuple[str, ...]:
        """Return the format's notes about the files."""
        return self.stored.format.notes(self.stored.path)

    def requires(self, inputs: Mapping[str, Artifact], context: PassContext) -> None:
        """Check the model as its format does, such as for NaN in the weights."""
        self.stored.format.check(self.stored.path)

    def run(self, inputs: Mapping[str, Artifact], out: Path, context: PassContext) -> PassOutput:
        """Copy the files; with links, the model could change without the store noticing."""
        files = self.stored.format.files(self.stored.path)
        for index, (name, file) in enumerate(files.items()):
            copy_file(file, out / name)
            context.progress("files", index + 1, len(files), {})
        return PassOutput()


class ModuleModel(InitializedModel):
    """An own module, or one of timm or torchvision, with weights from a file or from the seed."""

    def __init__(self, source: ModuleSource) -> None:
        """Take a module whose config is complete."""
        config = source.config
        super().__init__(Module(), config)
        self.module = config
        self.weights, self._notes = source.weights, source.notes
        library = () if self.family.user_code(config) else (config.builder,)
        self.tools = ("torch", *library)

    def fingerprint(self) -> Mapping[str, Any]:
        """Return the config, with digests of the code and of the weights."""
        config = self.config.model_dump(mode="json", exclude={"code", "counts"})
        code = self.config.model_dump(mode="json", include={"code"})
        weights = None if self.weights is None else digest_file(self.weights)
        return {
            "family": self.family.name,
            "version": self.family.version,
            "config": config,
            "code": digest_json(code),
            "weights": weights,
        }

    def notes(self) -> tuple[str, ...]:
        """Return what the module's library states about its data."""
        return self._notes

    def run(self, inputs: Mapping[str, Artifact], out: Path, context: PassContext) -> PassOutput:
        """Build the module, set its weights and save it."""
        import torch

        torch.manual_seed(context.seed)
        module = self.family.build(self.config)
        if self.weights is not None:
            from compressor.models.families.module.weights import read_weights, set_weights

            set_weights(module, read_weights(self.weights)[0])
        self.family.save(module, self.config, out)
        return PassOutput()

    def ensures(self, inputs: Mapping[str, Artifact], out: Path, context: PassContext) -> None:
        """Load the module again, and check that finite weights determine its outputs."""
        from compressor.models.checkpoint.finite import check_finite
        from compressor.models.families.module.determinism import (
            check_determinism,
            check_initialization,
        )

        super().ensures(inputs, out, context)
        check_finite(out)
        if self.weights is None:
            check_initialization(self.module, out, context.seed)
        check_determinism(self.module, out)


def open_source(model: ModelConfig, document: Document, base: Path) -> SourceModel:
    """Return the source that ``model:`` names, checked as far as that is cheap.

    Raises:
        ConfigError: a family, preset or field is wrong, or code is not allowed.
        ModelError: the path does not exist, or holds no model that may be loaded.
    """
    if model.family is not None:
        return InitializedModel(*resolve_family(model.family, model.preset, model.config, document))
    if model.path is None:
        return ModuleModel(complete_module(model, document, base))
    path = base / str(model.path)
    # A file may be a link to one without a suffix, as in the cache of Hugging Face.
    path = real_path(path) if path.is_dir() else real_path(path.parent) / path.name
    if not path.exists():
        raise ModelError(
            f"{path} does not exist", remedy="`model.path` is relative to the pipeline file"
        )
    stored = recognize(path)
    if (module := stored.format.module_source(stored.path)) is not None:
        return ModuleModel(module)
    source = ModelFiles(path)
    source.facts()
    return source
