"""Apply a package to its base: check all that can be checked, then replace a folder at once."""

from __future__ import annotations

import datetime
from dataclasses import dataclass
from pathlib import Path

from compressor.errors import CompressError, DamagedArtifactError, UsageError
from compressor.foreign_files.json_files import expect, parse_json
from compressor.models.adapters.layout import ADAPTER_CONFIG
from compressor.runtimes.delta.build import build_result, check_result, check_space
from compressor.runtimes.delta.identity import Base, open_base
from compressor.runtimes.delta.manifest import ResultIdentity
from compressor.runtimes.delta.package import COPY_AGAIN, Package, refused
from compressor.runtimes.delta.scales import merge_into_scales, merge_refusal
from compressor.runtimes.delta.signatures import check_package_signature, open_package
from compressor.runtimes.delta.slot import SCRATCH, Applied, Slot, SlotState
from compressor.runtimes.formats import format_named


@dataclass(frozen=True, slots=True)
class Application:
    """A request to apply a package.

    Attributes:
        package: the package, or a `delta` artifact.
        base: the model that it applies to: an artifact, a folder or a file. An adapter may be
            applied to an ONNX graph with slots that was exported from that model.
        out: the folder that holds the result.
        key: a public key file or a keyring; None for the one in the environment.
        signed: True to require a valid signature.
        merge: True to merge an (IA)³ adapter into the scales of its base.
        now: the present moment, in UTC.
    """

    package: Path
    base: Path
    out: Path
    key: Path | None
    signed: bool
    merge: bool
    now: datetime.datetime


def apply_package(request: Application) -> tuple[Applied, bool]:
    """Apply a package; return what is in use now, and False if it was in use before.

    Raises:
        UsageError: the package is for another base, has expired, has an earlier counter than one
            that was applied, or cannot be merged; or the folder holds something else.
        DamagedArtifactError: the package is damaged, not signed as required, or does not end in
            the digest that it announces.
        StorageError: the result does not fit on the disk.
    """
    package = open_package(request.package)
    signer = check_package_signature(request.package, package, request.key, signed=request.signed)
    manifest = package.manifest
    _check_expiry(package, request.now)
    base = open_base(request.base)
    if request.merge or not _is_exported_base(package, base):
        _check_base(package, base)
    result = manifest.result
    if request.merge:
        if manifest.merged is None:
            raise _no_merge(package, base)
        result = manifest.merged
    update = Applied(
        name=manifest.name,
        counter=manifest.counter,
        package=package.id,
        digest=result.digest,
        applied=request.now.isoformat(timespec="seconds"),
        signer=signer,
    )
    slot = Slot(request.out)
    _refuse_overlap(slot, base)
    with slot.locked():
        state = slot.state
        _check_counter(package, state)
        current = state.current
        if current is not None and current.digest == result.digest and slot.is_intact():
            slot.note_counter(manifest.counter, package.id)
            return current, False
        if request.merge:
            slot.apply(update, lambda out: _merge(package, base, result, out))
        else:
            slot.apply(update, lambda out: build_result(package, base.files, out))
    return update, True


def undo_package(out: Path) -> SlotState:
    """Put the model before the last update back; return what is in use now.

    Raises:
        UsageError: there is nothing to undo.
        DamagedArtifactError: the former model has changed.
    """
    slot = Slot(out)
    if not slot.home.is_dir():
        raise UsageError(
            f"{out}: no package was applied here", remedy="give --out the folder that `apply` wrote"
        )
    with slot.locked():
        return slot.undo()


def _check_expiry(package: Package, now: datetime.datetime) -> None:
    expiry = package.manifest.expiry
    if expiry is not None and now >= expiry:
        raise UsageError(
            f"{package.file} expired on {package.manifest.expires}; it is "
            f"{now.isoformat(timespec='seconds')}",
            remedy="get a newer package, or set the clock of this device",
        )


def _is_exported_base(package: Package, base: Base) -> bool:
    """Return True for an adapter of the model that the base, such as a graph, was exported from."""
    manifest = package.manifest
    needs_files = any(file.base is not None for file in manifest.files)
    if manifest.result.format != "adapter" or needs_files:
        return False
    return format_named(base.format).exported_from(base.path) == manifest.base.digest


def _check_base(package: Package, base: Base) -> None:
    expected = package.manifest.base
    if base.digest != expected.digest:
        raise UsageError(
            f"{package.file} is for another base: {expected.name} with the digest "
            f"{expected.digest[:12]}…; {base.path} has {base.digest[:12]}…",
            remedy="name the model that the package was made for, or get a package for this one",
        )
    if base.tokenizer != expected.tokenizer:
        raise refused(package.file, "it announces another tokenizer than that of its base")


def _check_counter(package: Package, state: SlotState) -> None:
    manifest = package.manifest
    if state.name is not None and state.name != manifest.name:
        raise UsageError(
            f"{package.file} belongs to the updates {manifest.name!r}, and this folder holds "
            f"those of {state.name!r}",
            remedy="choose another --out: each series of updates has its own",
        )
    if manifest.counter < state.highest:
        raise UsageError(
            f"{package.file} has the counter {manifest.counter}, and {state.highest} was applied "
            "before: older updates are refused",
            remedy="get the newest package; `apply --undo` returns to the model before the last",
        )
    is_other = state.highest_package not in {None, package.id}
    if manifest.counter == state.highest and is_other:
        raise UsageError(
            f"{package.file} has the counter {manifest.counter}, and so had another package that "
            "was applied before",
            remedy="raise `counter` of the `delta` step with every update",
        )


def _refuse_overlap(slot: Slot, base: Base) -> None:
    """Refuse a result whose folder would lie in its base, or its base in it."""
    folder, model = slot.folder.resolve(), base.path.resolve()
    if folder in model.parents or model in folder.parents:
        raise UsageError(
            f"{slot.folder} and the base {base.path} lie in each other",
            remedy="choose another --out",
        )


def _no_merge(package: Package, base: Base) -> CompressError:
    text = package.manifest.texts.get(ADAPTER_CONFIG)
    if text is not None:
        where = f"{ADAPTER_CONFIG} of {package.file}"
        config = parse_json(text.encode(), where, DamagedArtifactError, COPY_AGAIN)
        expect(config, dict, where, DamagedArtifactError, COPY_AGAIN)
        if (refusal := merge_refusal(config, base.path)) is not None:
            return refusal
    return UsageError(
        f"{package.file} announces no merged result",
        remedy="make it with a `delta` step whose base has packed weights, from an (IA)³ adapter",
    )


def _merge(package: Package, base: Base, merged: ResultIdentity, out: Path) -> None:
    check_space(merged.bytes, out)
    adapter = out.with_name(SCRATCH)
    adapter.mkdir()
    build_result(package, base.files, adapter)
    merge_into_scales(adapter, base.files, out)
    check_result(merged, out, package.file)
