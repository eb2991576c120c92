"""The shards of a packed checkpoint: one for each decoder layer, and some for all else; written whole, read back, compared."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from compressor.artifacts.errors_from_os import writing
from compressor.artifacts.files import copy_file
from compressor.errors import NumericalError, ParityError
from compressor.models.checkpoint.files import CONFIG, INDEX
from compressor.models.families.transformers.streaming import DTYPES, StreamedCheckpoint
from compressor.models.quantized.description import QUANTIZATION_CONFIG
from compressor.models.quantized.packed_formats import Format
from compressor.models.quantized.packed_linear import PackedLinear

_SHARD_BYTES = 1 << 30
_METADATA = {"format": "pt"}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}


def cast(name: str, value: Tensor, dtype: torch.dtype) -> Tensor:
    """A float tensor in the dtype of the file; others as they are.

    Raises:
        NumericalError: it holds numbers that are too large for it.
    """
    if not value.is_floating_point() or value.dtype == dtype:
        return value.contiguous()
    found = value.to(dtype)
    if not bool(found.isfinite().all()):
        raise NumericalError(
            f"{name} holds values up to {float(value.abs().max()):g}, too large for {str(dtype).removeprefix('torch.')}",
            remedy="set `dtype: bfloat16` and `format: compressed-tensors`",
        )
    return found.contiguous()


def write_packed(
    file: Path,
    prefix: str,
    others: Mapping[str, Tensor],
    dtype: torch.dtype,
    packed: Mapping[str, PackedLinear],
    kind: Format,
) -> None:
    """Packed layers and what is beside them, and read it back.

    Args:
        file: where to.
        prefix: of all names.
        others: tensors that are not packed.
        dtype: of those that are floats.
        packed: layers.
        kind: how they are stored.

    Raises:
        NumericalError: numbers are too large for ``dtype``.
        ParityError: what is read is not what was written.
    """
    tensors = {
        f"{prefix}{name}": cast(f"{prefix}{name}", value, dtype) for name, value in others.items()
    }
    for name, one in packed.items():
        tensors |= {
            f"{prefix}{name}.{suffix}": value for suffix, value in kind.tensors(one).items()
        }
    _save(tensors, file)
    found = safetensors.torch.load(file.read_bytes())
    for name, one in packed.items():
        start = f"{prefix}{name}."
        back = kind.linear(
            {
                key.removeprefix(start): value
                for key, value in found.items()
                if key.startswith(start)
            },
            one.grid,
        )
        if not back.equals(one):
            raise ParityError(
                f"{start[:-1]}: the weights that are read back from {file.name} are others than were written"
            )


def write_others(
    folder: Path, checkpoint: StreamedCheckpoint, names: Iterable[str], dtype: torch.dtype
) -> None:
    """All tensors that are in no decoder layer, a few megabytes at a time, in shards of about a gigabyte."""
    shards: list[list[str]] = []
    left = 0
    for name in names:
        size = checkpoint.kind(name)[1].numel() * dtype.itemsize
        if not shards or size > left:
            shards.append([])
            left = _SHARD_BYTES
        shards[-1].append(name)
        left -= size
    for number, some in enumerate(shards):
        _write_in_pieces(folder / f"others-{number:05d}.safetensors", checkpoint, some, dtype)


def _write_in_pieces(
    file: Path, checkpoint: StreamedCheckpoint, names: Iterable[str], dtype: torch.dtype
) -> None:
    """The safetensors format: the header's length, a header that tells where each tensor lies, and their bytes."""
    header: dict[str, Any] = {"__metadata__": _METADATA}
    end = 0
    for name in names:
        before, shape = checkpoint.kind(name)
        after = dtype if before.is_floating_point else before
        start, end = end, end + shape.numel() * after.itemsize
        header[name] = {"dtype": _NAMES[after], "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with writing(file):
        part = file.with_suffix(".part")
        with part.open("wb") as handle:
            handle.write(len(text).to_bytes(8, "little") + text)
            for name in names:
                for piece in checkpoint.pieces(name):
                    handle.write(cast(name, piece, dtype).view(torch.uint8).numpy().tobytes())
        part.replace(file)


def assemble(
    shards: list[Path],
    out: Path,
    tree: Mapping[str, Any],
    quantization: Mapping[str, Any],
    dtype: torch.dtype,
    parent: Path,
) -> None:
    """Shards under their final names, the index, config.json, and the parent's other files, such as the tokenizer's."""
    places: dict[str, str] = {}
    total = 0
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
        for number, file in enumerate(shards, start=1):
            name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
            with safetensors.safe_open(file, framework="pt") as opened:
                places |= dict.fromkeys(opened.keys(), name)
            total += file.stat().st_size
            shutil.copyfile(file, out / name)
            (out / name).chmod(0o644)
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(places.items()))}
        (out / INDEX).write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")
        text = str(dtype).removeprefix("torch.")
        config = {**tree, QUANTIZATION_CONFIG: quantization, "dtype": text}
        config.pop("torch_dtype", None)
        (out / CONFIG).write_text(
            json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8"
        )
        for file in sorted(parent.iterdir()):
            if (
                file.is_file()
                and file.name not in {CONFIG, INDEX}
                and ".safetensors" not in file.name
            ):
                copy_file(file, out / file.name)


def _save(tensors: Mapping[str, Tensor], file: Path) -> None:
    with writing(file):
        file.parent.mkdir(parents=True, exist_ok=True)
        part = file.with_suffix(".part")
        safetensors.torch.save_file(dict(sorted(tensors.items())), part, metadata=_METADATA)
        part.replace(file)
