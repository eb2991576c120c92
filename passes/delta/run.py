"""The ``delta`` pass as a whole: encode the model in each form, and keep the smallest one."""

from __future__ import annotations

import shutil
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from compressor.artifacts.errors_from_os import reading, writing
from compressor.artifacts.files import copy_file
from compressor.artifacts.fingerprint import digest_file
from compressor.engine.contract import PassContext, PassOutput
from compressor.errors import ModelError, RequirementError
from compressor.foreign_files.json_files import read_json_object
from compressor.models.adapters.base import BASE
from compressor.models.adapters.layout import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from compressor.models.checkpoint.floats import float_tensors
from compressor.runtimes.delta.build import build_result, result_of, write_files
from compressor.runtimes.delta.identity import Base
from compressor.runtimes.delta.manifest import (
    MOST_AXES,
    DeltaManifest,
    Encoding,
    LossRecord,
    PayloadRecord,
    ResultIdentity,
    TensorRecord,
)
from compressor.runtimes.delta.package import FILE, read_package, write_package
from compressor.runtimes.delta.patch import encode_file
from compressor.runtimes.delta.scales import merge_into_scales, merge_refusal
from compressor.runtimes.delta.tensors import encode_tensor
from passes.delta.config import ADAPTER, DeltaConfig
from passes.delta.sources import Source
from passes.delta.updates import relative_errors, scale_axis

_ENCODINGS: tuple[Encoding, ...] = ("int8", "float16", "exact")
_NOTHING = "0" * 64
_LARGEST_HALF = 65504.0


@dataclass(frozen=True, slots=True)
class _Candidate:
    """A package in one encoding."""

    encoding: Encoding
    file: Path
    loss: LossRecord | None

    @property
    def error(self) -> float:
        """The largest relative error of an update."""
        return 0.0 if self.loss is None else self.loss.relative_error


def write_delta(
    config: DeltaConfig, source: Source, base: Base, out: Path, context: PassContext
) -> PassOutput:
    """Write the package, and apply it for a test.

    Args:
        config: the fields of the step.
        source: the files of the new model.
        base: the model that the package applies to.
        out: folder for the package.
        context: work folder and progress.

    Raises:
        RequirementError: no encoding fits the model and `max_error`.
        NumericalError: a tensor holds NaN or infinity.
        MissingExtraError: `zstandard` is not installed.
    """
    wanted = _ENCODINGS if config.encoding == "auto" else (config.encoding,)
    if source.format != ADAPTER:
        wanted = tuple(encoding for encoding in wanted if encoding == "exact")
    candidates: list[_Candidate] = []
    reasons: dict[Encoding, str] = {}
    for index, encoding in enumerate(wanted):
        context.progress(encoding, index, len(wanted), {})
        try:
            candidate = _encode(config, encoding, source, base, context.work)
        except _Unfit as error:
            reasons[encoding] = str(error)
            continue
        if candidate.error > config.max_error:
            reasons[encoding] = (
                f"relative error {candidate.error:.3g} of {_update(candidate)}, "
                f"{config.max_error:g} allowed"
            )
            continue
        candidates.append(candidate)
    if not candidates:
        raise RequirementError(
            "no encoding fits:\n" + "\n".join(f"    {k}: {v}" for k, v in reasons.items()),
            remedy="raise `max_error`, or set `encoding: auto`, which also tries exact files",
        )
    chosen = min(candidates, key=lambda candidate: candidate.file.stat().st_size)
    copy_file(chosen.file, out / FILE)
    _check(out / FILE, base, context.work)
    return PassOutput(_summary(config, source, base, out / FILE, (candidates, reasons)))


def _update(candidate: _Candidate) -> str:
    return "no update" if candidate.loss is None else candidate.loss.update


def _summary(
    config: DeltaConfig,
    source: Source,
    base: Base,
    file: Path,
    tried: tuple[Sequence[_Candidate], Mapping[Encoding, str]],
) -> dict[str, Any]:
    manifest = read_package(file).manifest
    model_bytes = sum(path.stat().st_size for path in source.files.values())
    return {
        "encoding": manifest.encoding,
        "package_bytes": file.stat().st_size,
        "model_bytes": model_bytes,
        "series": config.series,
        "counter": config.counter,
        "base": base.digest,
        "result": manifest.result.digest,
        "merged": None if manifest.merged is None else manifest.merged.digest,
        "loss": None if manifest.loss is None else manifest.loss.model_dump(mode="json"),
        "encodings": {
            each.encoding: {"bytes": each.file.stat().st_size, "relative_error": each.error}
            for each in tried[0]
        },
        "refused_encodings": dict(tried[1]),
    }


class _Unfit(Exception):  # noqa: N818 - a reason, reported with those of other encodings
    """An encoding does not fit the model."""


def _encode(
    config: DeltaConfig, encoding: Encoding, source: Source, base: Base, work: Path
) -> _Candidate:
    """Write the package in one encoding into the work folder."""
    home = work / encoding
    if home.exists():
        shutil.rmtree(home)
    with writing(home):
        (home / "result").mkdir(parents=True)
    contents = (
        _exact_contents(source, base, home / "payload")
        if encoding == "exact"
        else _rounded_contents(encoding, source, home / "payload")
    )
    size = sum(path.stat().st_size for path in source.files.values())
    manifest = DeltaManifest(
        format="autoglm-compress delta",
        version=1,
        name=config.series,
        counter=config.counter,
        expires=config.expires,
        encoding=encoding,
        base=base.record(source.base_name),
        result=ResultIdentity(digest=_NOTHING, bytes=size, format=source.format),
        merged=None,
        loss=None,
        **contents,
    )
    draft, file = home / "draft", home / FILE
    write_package(draft, manifest, home / "payload")
    write_files(read_package(draft), base.files, home / "result")
    result = result_of(home / "result", source.format)
    loss = None if encoding == "exact" else _loss(source, home / "result")
    merged = _merged(source, base, home)
    final = manifest.model_copy(update={"result": result, "loss": loss, "merged": merged})
    write_package(file, final, home / "payload")
    return _Candidate(encoding, file, loss)


def _exact_contents(source: Source, base: Base, payload: Path) -> dict[str, Any]:
    related = base.files if base.format == source.format else {}
    with writing(payload), payload.open("wb") as target:
        files = [
            encode_file(name, file, related, target) for name, file in sorted(source.files.items())
        ]
    size = payload.stat().st_size
    record = PayloadRecord(sha256=digest_file(payload), bytes=size, unpacked=size, zlib=False)
    return {"payload": record, "texts": {}, "tensors": (), "files": tuple(files)}


def _rounded_contents(
    encoding: Literal["int8", "float16"], source: Source, payload: Path
) -> dict[str, Any]:
    """Write the rounded tensors as one zlib stream, or as they are if that is smaller.

    Raises:
        _Unfit: a tensor has more than two axes, or values beyond the range of float16.
    """
    records = []
    plain = payload.with_suffix(".plain")
    deflate, plain_bytes = zlib.compressobj(9), 0
    with writing(payload), payload.open("wb") as packed, plain.open("wb") as unpacked:
        try:
            for name, values in float_tensors(source.files[ADAPTER_WEIGHTS]):
                record = _record(encoding, name, values)
                content = encode_tensor(record, values)
                unpacked.write(content)
                packed.write(deflate.compress(content))
                plain_bytes += len(content)
                records.append(record)
        except ModelError as error:
            raise _Unfit(error.what) from error
        packed.write(deflate.flush())
    smaller = payload.stat().st_size < plain_bytes
    if not smaller:
        plain.replace(payload)
    payload_record = PayloadRecord(
        sha256=digest_file(payload),
        bytes=payload.stat().st_size,
        unpacked=plain_bytes,
        zlib=smaller,
    )
    with reading(source.files[BASE]):
        texts = {
            name: source.files[name].read_text(encoding="utf-8") for name in (ADAPTER_CONFIG, BASE)
        }
    return {"payload": payload_record, "texts": texts, "tensors": tuple(records), "files": ()}


def _record(
    encoding: Literal["int8", "float16"], name: str, values: NDArray[np.float32]
) -> TensorRecord:
    if not 1 <= values.ndim <= MOST_AXES or not values.size:
        reason = f"tensors of 1 to {MOST_AXES} axes are rounded"
        raise _Unfit(f"{name} has the shape {list(values.shape)}; {reason}")
    if encoding == "float16" and float(np.abs(values).max()) > _LARGEST_HALF:
        raise _Unfit(f"{name} has values beyond the range of float16")
    axis = scale_axis(name, values.shape) if encoding == "int8" else None
    return TensorRecord(name=name, shape=values.shape, encoding=encoding, axis=axis)


def _loss(source: Source, result: Path) -> LossRecord:
    exact, rounded = source.files[ADAPTER_WEIGHTS], result / ADAPTER_WEIGHTS
    errors = relative_errors(dict(float_tensors(exact)), dict(float_tensors(rounded)))
    worst = max(sorted(errors), key=errors.__getitem__)
    if not np.isfinite(errors[worst]):
        raise _Unfit(f"the update of {worst} is zero, and is not after rounding")
    return LossRecord(relative_error=errors[worst], update=worst)


def _merged(source: Source, base: Base, home: Path) -> ResultIdentity | None:
    """Return the identity of the base with an (IA)³ adapter in its scales; None for others."""
    if source.format != ADAPTER or base.format == ADAPTER:
        return None
    config = read_json_object(source.files[ADAPTER_CONFIG], ModelError, remedy=None)
    if merge_refusal(config, base.path) is not None:
        return None
    folder = home / "merged"
    with writing(folder):
        folder.mkdir()
    try:
        merge_into_scales(home / "result", base.files, folder)
    except ModelError:
        return None  # its layers are not packed, or not those of the adapter
    identity = result_of(folder, base.format)
    shutil.rmtree(folder)
    return identity


def _check(file: Path, base: Base, work: Path) -> None:
    """Apply the package to its base as a device does."""
    folder = work / "applied"
    if folder.exists():
        shutil.rmtree(folder)
    with writing(folder):
        folder.mkdir()
    build_result(read_package(file), base.files, folder)
