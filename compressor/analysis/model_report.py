"""Report on any model file or folder: its kind, its parts, and the passes that it can go through.

Nothing is executed or unpickled.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from compressor.analysis.model_files import FileReport, list_files, report_files
from compressor.artifacts.files import size_bytes
from compressor.engine.contract import StarterModel
from compressor.engine.plan.capabilities import (
    PassSuitability,
    suitable_passes,
    unsuitable_passes,
)
from compressor.errors import ModelError
from compressor.foreign_files.json_files import read_json
from compressor.foreign_files.limits import INDEX
from compressor.runtimes.foreign.contract import Description, ForeignModel
from compressor.runtimes.foreign.identify import identify_any, inner_models
from compressor.runtimes.formats import StoredModel, recognize, recognizing_formats
from compressor.runtimes.tensor_listing import ListedTensor

VOCABULARIES = frozenset({"tokenizer.json", "vocab.json"})


class PassReport(BaseModel):
    """A pass, and the reasons why it does not accept the model."""

    model_config = ConfigDict(frozen=True)

    name: str
    suitable: bool
    reasons: tuple[str, ...]
    remedies: tuple[str, ...] = ()
    """Ways to a model that the pass accepts."""


class DtypeReport(BaseModel):
    """The tensors of one dtype."""

    model_config = ConfigDict(frozen=True)

    dtype: str
    tensors: int
    values: int
    share: float
    """Part of all values, from 0 to 1."""


class InnerModel(BaseModel):
    """A model below a path."""

    model_config = ConfigDict(frozen=True)

    path: str
    title: str
    """Its kind, in one line."""


class ModelReport(BaseModel):
    """Everything that `show` prints about a model that is not an artifact."""

    model_config = ConfigDict(frozen=True)

    path: str
    title: str
    """Its kind, in one line."""
    format: str | None
    """The installed format that is used; None if none reads the path."""
    summary: str | None
    """One-line summary of the format."""
    runtime: str | None
    """The runtime that executes it here."""
    also: tuple[str, ...] = ()
    """Other formats that recognize the path; they are not used."""
    inner: tuple[InnerModel, ...] = ()
    """Other models below the path."""
    size_bytes: int | None
    """Size of the files that are used, or of all files of a foreign model."""
    parameters: int | None
    macs: int | None = None
    details: tuple[tuple[str, str], ...]
    """Labelled facts from the format."""
    tensors: int | None
    """Number of stored tensors."""
    dtypes: tuple[DtypeReport, ...]
    files: tuple[FileReport, ...]
    problem: str | None = None
    """Why the model cannot be opened."""
    remedy: str | None = None
    """The way to a model that passes read, where this one is not."""
    damaged: bool = False
    """True if a header is truncated or damaged, or a JSON file is none."""
    passes: tuple[PassReport, ...]


def report_path(path: Path) -> ModelReport:
    """Describe the model at a path, whether passes read it or not.

    Raises:
        ModelError: the path does not exist, or nothing is recognized there.
    """
    if path.exists() and not recognizing_formats(path):
        foreign = identify_any(path)
        if foreign is not None:
            return _report_foreign(foreign)
    return report_model(recognize(path))


def report_model(model: StoredModel) -> ModelReport:
    """Describe a model of an installed format, and check it against every installed pass."""
    format_, path = model.format, model.path
    problem = remedy = None
    starter = None
    try:
        starter = StarterModel(format_.facts(path), format_.inputs(path))
        notes = [("note", note) for note in format_.notes(path)]
        details = [*format_.describe(path), *notes]
    except ModelError as error:
        problem, remedy, details = error.what, error.remedy, []
    damaged, listing = False, None
    try:
        listing = format_.tensor_listing(path)
    except ModelError as error:
        damaged, problem = True, problem or error.what
    files = report_files(model)
    unreadable = _unreadable_json(path, files)
    damaged, problem = damaged or unreadable is not None, problem or unreadable
    facts = None if problem or starter is None else starter.facts
    return ModelReport(
        path=str(path),
        title=format_.title(path),
        format=format_.name,
        summary=format_.summary,
        runtime=format_.runtime,
        also=tuple(other.name for other in recognizing_formats(path) if other is not format_),
        inner=_inner(path, files),
        size_bytes=sum(file.size_bytes for file in files if file.used),
        parameters=(facts and facts.parameters) or _parameters(listing),
        macs=None if facts is None else facts.macs,
        details=tuple(details),
        tensors=None if listing is None else len(listing),
        dtypes=_dtypes(listing),
        files=files,
        problem=problem,
        remedy=remedy or (format_.default_remedy if problem is None else None),
        damaged=damaged,
        passes=_passes(_suitability(model, starter if problem is None else None, remedy)),
    )


def report_passes(model: StoredModel) -> tuple[PassReport, ...]:
    """Check a model of an artifact against every installed pass."""
    try:
        starter = StarterModel(model.format.facts(model.path), model.format.inputs(model.path))
    except ModelError as error:
        return _passes(_suitability(model, None, error.remedy))
    return _passes(_suitability(model, starter, None))


def _suitability(
    model: StoredModel, starter: StarterModel | None, remedy: str | None
) -> list[PassSuitability]:
    if starter is not None:
        return suitable_passes(model.format, starter)
    return unsuitable_passes(model.format.name, remedy)


def _report_foreign(foreign: ForeignModel) -> ModelReport:
    path, is_collection = foreign.path, foreign.kind.is_collection
    problem, content = None, Description()
    try:
        content = foreign.describe()
    except ModelError as error:
        problem = error.what
    return ModelReport(
        path=str(path),
        title=foreign.title,
        format=None,
        summary=None,
        runtime=None,
        inner=_describe_inner(content.inner),
        size_bytes=None if is_collection else size_bytes(path),
        parameters=_parameters(content.tensors),
        details=content.details,
        tensors=None if content.tensors is None else len(content.tensors),
        dtypes=_dtypes(content.tensors),
        files=() if is_collection else list_files(path),
        problem=problem,
        remedy=foreign.remedy,
        damaged=problem is not None,
        passes=_passes(unsuitable_passes(None, foreign.remedy)),
    )


def _unreadable_json(path: Path, files: Sequence[FileReport]) -> str | None:
    """Return what is wrong with the first used JSON file that is none; None if all are JSON.

    Vocabularies are left to the library that reads them: parsing one may take seconds.
    """
    folder = path if path.is_dir() else path.parent
    for file in files:
        if file.used and file.name.endswith(".json") and Path(file.name).name not in VOCABULARIES:
            try:
                read_json(folder / file.name, ModelError, remedy=None, kind=INDEX)
            except ModelError as error:
                return error.what
    return None


def _inner(path: Path, files: Sequence[FileReport]) -> tuple[InnerModel, ...]:
    """Return the other models in a folder; single weight files are listed among its files."""
    if not path.is_dir():
        return ()
    used = {path / file.name for file in files if file.used}
    return _describe_inner(
        inner
        for inner in inner_models(path)
        if (inner.is_dir() or inner.suffix == ".onnx")
        and inner not in used
        and not any(inner in file.parents for file in used)
    )


def _describe_inner(paths: Iterable[Path]) -> tuple[InnerModel, ...]:
    return tuple(InnerModel(path=str(path), title=_title(path)) for path in paths)


def _title(path: Path) -> str:
    """Return what the model at a path is, without describing it."""
    if formats := recognizing_formats(path):
        return formats[0].title(formats[0].model_path(path))
    foreign = identify_any(path)
    return "a model" if foreign is None else foreign.title


def _parameters(listing: Sequence[ListedTensor] | None) -> int | None:
    return None if listing is None else sum(tensor.values for tensor in listing)


def _dtypes(listing: Sequence[ListedTensor] | None) -> tuple[DtypeReport, ...]:
    """Return the tensors by dtype, the most values first."""
    total = _parameters(listing) or 1
    by_dtype: dict[str, list[int]] = {}
    for tensor in listing or ():
        by_dtype.setdefault(tensor.dtype, []).append(tensor.values)
    reports = [
        DtypeReport(dtype=dtype, tensors=len(values), values=sum(values), share=sum(values) / total)
        for dtype, values in by_dtype.items()
    ]
    return tuple(sorted(reports, key=lambda report: (-report.values, report.dtype)))


def _passes(answers: Sequence[PassSuitability]) -> tuple[PassReport, ...]:
    return tuple(
        PassReport(
            name=answer.pass_name,
            suitable=not answer.reasons,
            reasons=answer.reasons,
            remedies=answer.remedies,
        )
        for answer in answers
    )
