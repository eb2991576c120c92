"""Model formats as plugins: recognize a path, open it, read its tensors, count what it costs.

A format is one class, registered under the entry-point group ``autoglm_compress.formats``. The
engine, the evaluation, the reports and the commands never compare format names: they call the
methods below on the format of the model at hand. A new format is one file and one entry point.

Importing a format's module must load neither torch, onnx nor tensorrt; methods import them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from compressor.artifacts.artifact import MANIFEST, MODEL, open_artifact
from compressor.artifacts.files import size_bytes
from compressor.config import discovery
from compressor.errors import ModelError, UsageError
from compressor.models.facts import ModelFacts
from compressor.runtimes.foreign.identify import MODEL_KINDS, identify_any
from compressor.runtimes.format_records import Cost, LowPrecision, ModuleSource, SampleShapes

if TYPE_CHECKING:
    import numpy as np

    from compressor.artifacts.artifact import Artifact
    from compressor.artifacts.manifest import Metric
    from compressor.data.contract import Batch
    from compressor.models.capabilities.signature import InputSpec
    from compressor.runtimes.decoding import EncoderDecoder, EncoderDecoderOptions, GenerationLimits
    from compressor.runtimes.layers import Layers
    from compressor.runtimes.rows import RowDecoder, RowOptions
    from compressor.runtimes.session import Session
    from compressor.runtimes.tensor_listing import ListedTensor

    TensorReader = Callable[[], np.ndarray[Any, Any]]


@dataclass(frozen=True, slots=True)
class StandIn:
    """A model that is measured in place of one that cannot run on this machine."""

    model: StoredModel
    reason: str
    """One sentence: why the model itself cannot run here."""


class Format(ABC):
    """One on-disk model format.

    Methods that a format does not override raise one clear error that names the model and the
    format, so a format implements only what it supports.
    """

    name: ClassVar[str]
    """The name in manifests and in the ``accepts`` and ``produces`` of passes."""
    summary: ClassVar[str]
    """One line for `passes`, `show` and error messages."""
    former_names: ClassVar[tuple[str, ...]] = ()
    """Names under which older manifests refer to this format."""
    accepted_as: ClassVar[tuple[str, ...]] = ()
    """Other formats whose consumers can read this one too."""
    runtime: ClassVar[str | None] = None
    """The runtime that executes it, such as ``ONNX Runtime``; None if it cannot be measured.

    Latencies are compared only between formats of the same runtime.
    """
    runtime_remedy: ClassVar[str | None] = None
    """The way to ``runtime``, if it is None because a package is not installed."""
    restorable_layers: ClassVar[bool] = False
    """True where `bisect` can exchange single layers between two models (torch modules)."""
    precedence: ClassVar[int] = 0
    """Decides where several formats recognize a path: the highest wins."""
    default_remedy: ClassVar[str | None] = None
    """Remedy: the way to a model that other passes read; None where another pass leads there."""

    @abstractmethod
    def recognizes(self, path: Path) -> bool:
        """Return True if ``path``, a file or a folder, holds a model of this format.

        Looks at file names and small headers only, and never raises for foreign content.
        """

    def model_path(self, path: Path) -> Path:
        """Return the path that the other methods take: by default the model's folder."""
        return path.parent if path.is_file() else path

    def title(self, path: Path) -> str:
        """Return what a model is, in one line for `show`; by default the format's summary."""
        return self.summary

    def files(self, path: Path) -> Mapping[str, Path]:
        """Return the files that the model uses, by their name in a model folder of this format.

        A source model is copied from them. By default they are all files of the folder.
        """
        files = sorted(file for file in path.rglob("*") if file.is_file())
        return {file.relative_to(path).as_posix(): file for file in files}

    def inputs(self, path: Path) -> tuple[InputSpec, ...] | None:
        """Return the inputs of a model; None if they are not known.

        Raises:
            ModelError: the model's description cannot be read.
        """
        architecture = self.facts(path).architecture()
        return None if architecture is None else architecture.signature.inputs

    def tensor_listing(self, path: Path) -> tuple[ListedTensor, ...] | None:
        """Return names, dtypes and shapes of the stored weights; None if they are not listed.

        Raises:
            ModelError: a header is truncated or damaged.
        """
        return None

    def describe(self, path: Path) -> list[tuple[str, str]]:
        """Return labelled facts for `show`, beyond the size, parameters and MACs of ``facts``."""
        return []

    def exported_from(self, path: Path) -> str | None:
        """Return the digest of the model that a file for adapters was exported from, if stated."""
        return None

    def notes(self, path: Path) -> tuple[str, ...]:
        """Return choices that were made between two readings of the files, for plan and `show`.

        Raises:
            ModelError: the model's description cannot be read.
        """
        return ()

    def module_source(self, path: Path) -> ModuleSource | None:
        """Return the module that a pipeline starts from in place of the model; None for none.

        For models of other libraries that are taken over when a pipeline starts.

        Raises:
            CompressError: the module cannot be built, or the weights do not fit.
        """
        return None

    def check(self, path: Path) -> None:
        """Check a model before it enters the store, and after a pass has written it.

        Raises:
            ModelError: the files cannot be read; the message names every offender.
            NumericalError: weights hold NaN or infinity.
        """
        return

    def facts(self, path: Path) -> ModelFacts:
        """Return what planning may use, without loading weights.

        Raises:
            ModelError: the model's description cannot be read.
        """
        return ModelFacts(size_bytes=size_bytes(path))

    def cost(self, path: Path, sample_shapes: SampleShapes) -> Cost:
        """Return size, parameters and MACs."""
        facts = self.facts(path)
        return Cost(size_bytes(path), facts.parameters, facts.macs)

    def stand_in(self, path: Path) -> StandIn | None:
        """Return the model to measure instead, or None if the model itself runs on this machine."""
        return None

    def execution_metrics(self, *, executed: bool) -> tuple[Metric, ...]:
        """Return metrics that state whether the model itself was executed; none by default."""
        return ()

    def open_session(self, path: Path, *, threads: int, device: str = "cpu") -> Session:
        """Open the model for inference.

        Raises:
            ModelError: the model cannot be opened.
            UsageError: no runtime executes this format.
            GpuError: the model needs a GPU that is not present.
        """
        raise self._unsupported(
            path, "no runtime executes it", "measure the torch or onnx artifact it was made from"
        )

    def generation_limits(self, path: Path) -> GenerationLimits:
        """Return context length and input kinds of a model that generates tokens.

        Raises:
            UsageError: the model does not generate.
        """
        raise UsageError(
            f"{path} holds no model that generates text",
            remedy="name a transformers checkpoint, its awq artifact, or the ONNX export of either",
        )

    def prompt_limits(self, path: Path) -> GenerationLimits:
        """Return the limits of a model with a tokenizer of transformers, for prompts as text.

        Raises:
            UsageError: the model does not generate, or has another tokenizer.
        """
        return self.generation_limits(path)

    def open_encoder_decoder(self, path: Path, options: EncoderDecoderOptions) -> EncoderDecoder:
        """Open a model whose limits name encoder inputs, to generate one sequence at a time.

        Raises:
            UsageError: the model does not generate, or not with these options.
            ModelError: the model cannot be opened.
        """
        self.generation_limits(path)
        raise self._unsupported(path, "it has no encoder and decoder", None)

    def open_rows(self, path: Path, options: RowOptions) -> RowDecoder:
        """Open a decoder without encoder, to generate one or several sequences at once.

        Raises:
            UsageError: the model does not generate, or not with these options.
            ModelError: the model cannot be opened.
        """
        self.generation_limits(path)
        raise self._unsupported(path, "it has no decoder", None)

    def open_layers(self, path: Path, threads: int) -> Layers:
        """Open the model for layer-by-layer inspection (`compare -p`).

        Raises:
            UsageError: the layers of this format cannot be inspected.
        """
        raise self._unsupported(path, "its layers cannot be inspected", None)

    def tensors(self, path: Path) -> Mapping[str, TensorReader]:
        """Return the weights by module name, each read when called; dequantized to float.

        Raises:
            UsageError: the format holds no tensors that can be compared.
        """
        raise self._unsupported(path, "it holds no tensors to compare", None)

    def low_precision(self, path: Path, batch: Batch, threads: int) -> LowPrecision:
        """Profile the model's use of integer arithmetic on a batch."""
        return LowPrecision()

    def _unsupported(self, path: Path, what: str, remedy: str | None) -> UsageError:
        return UsageError(f"{path} is of the format {self.name!r}: {what}", remedy=remedy)


@dataclass(frozen=True, slots=True)
class StoredModel:
    """A model on disk with its format: what commands and the engine pass around."""

    format: Format
    path: Path

    @classmethod
    def of(cls, artifact: Artifact) -> StoredModel:
        """Return the model of an artifact.

        Raises:
            UsageError: the format's plugin is not installed.
        """
        return cls(format_named(artifact.manifest.format), artifact.model)

    def runnable(self) -> tuple[StoredModel, str | None]:
        """Return the model to execute on this machine, and the reason if it is a stand-in."""
        stand_in = self.format.stand_in(self.path)
        return (self, None) if stand_in is None else (stand_in.model, stand_in.reason)

    def open_session(self, threads: int, device: str = "cpu") -> Session:
        """Open the model for inference; errors as ``Format.open_session``."""
        return self.format.open_session(self.path, threads=threads, device=device)


def installed_formats() -> list[Format]:
    """Return every installed format, sorted by name."""
    return [discovery.load(discovery.FORMATS, name) for name in discovery.names(discovery.FORMATS)]


def format_named(name: str) -> Format:
    """Return the format of a name, or of a former name.

    Raises:
        UsageError: no such format is installed.
    """
    format_: Format = discovery.load(discovery.FORMATS, _current_names().get(name, name))
    return format_


@cache
def _current_names() -> Mapping[str, str]:
    return {
        former: format_.name for format_ in installed_formats() for former in format_.former_names
    }


def recognizing_formats(path: Path) -> list[Format]:
    """Return the formats that recognize a path, the one that is used first."""
    candidates = [format_ for format_ in installed_formats() if format_.recognizes(path)]
    return sorted(candidates, key=lambda format_: (-format_.precedence, format_.name))


def recognize(path: Path) -> StoredModel:
    """Return the model at a path: a file or folder as its author wrote it, or an artifact's model.

    Raises:
        ModelError: the path does not exist, or no installed format recognizes it.
    """
    if not path.exists():
        raise ModelError(
            f"{path} does not exist", remedy="name a model's file or folder, or an artifact"
        )
    if candidates := recognizing_formats(path):
        return StoredModel(candidates[0], candidates[0].model_path(path))
    if (foreign := identify_any(path)) is not None:
        raise foreign.refusal()
    raise ModelError(_unrecognized(path), remedy=_REMEDY_FOR_UNRECOGNIZED)


_REMEDY_FOR_UNRECOGNIZED = f"name the folder or file of a model (an artifact's is {MODEL}/)"


def _unrecognized(path: Path) -> str:
    """Return the message for a path that holds no model: what is there, and what was looked for."""
    if path.is_dir():
        names = sorted(child.name for child in path.iterdir())
        more = ", …" if names[5:] else ""
        content = f"it holds {', '.join(names[:5])}{more}" if names else "it is empty"
    else:
        content = f"it has {path.stat().st_size} bytes"
    formats = "\n".join(f"    {format_.name}: {format_.summary}" for format_ in installed_formats())
    others = ", ".join(dict.fromkeys(kind.short_title for kind in MODEL_KINDS))
    return (
        f"{path} is not recognized as a model: {content}. Looked for:\n{formats}\n"
        f"    and kinds that no pass reads: {others}"
    )


def recognize_model(path: Path) -> StoredModel:
    """Return the model of an artifact, or the model at any other path.

    Raises:
        ModelError: as ``recognize``.
        DamagedArtifactError: the artifact's manifest is damaged.
    """
    return StoredModel.of(open_artifact(path)) if (path / MANIFEST).is_file() else recognize(path)


def accepts(names: frozenset[str], format_name: str) -> bool:
    """Return True if a pass that accepts ``names`` can read a model of a format."""
    format_ = format_named(format_name)
    return not names.isdisjoint({format_.name, *format_.accepted_as})


def open_session(format_name: str, path: Path, *, threads: int, device: str = "cpu") -> Session:
    """Open a model of a named format for inference; errors as ``Format.open_session``."""
    return format_named(format_name).open_session(path, threads=threads, device=device)


def open_layers(format_name: str, path: Path, threads: int) -> Layers:
    """Open the layers of a model of a named format; errors as ``Format.open_layers``."""
    return format_named(format_name).open_layers(path, threads)
